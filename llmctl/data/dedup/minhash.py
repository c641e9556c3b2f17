"""MinHash signatures and the buckets that near duplicates share (Broder 1997; banding as in datasketch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from datasketch import MinHash, MinHashLSH

from llmctl.data.dedup.shingles import Hashes, mix

Signatures = npt.NDArray[np.uint32]

# Candidates are verified, so a missed pair costs more than a needless comparison.
FALSE_POSITIVE_WEIGHT, FALSE_NEGATIVE_WEIGHT = 0.05, 0.95
BLOCK_SHINGLES = 1 << 15  # what one permutation works on at a time; fits the second-level cache


class Signer:
    """Signatures of shingle sets, equal to those of `datasketch.MinHash(scheme="affine32")` on the same hashes.

    datasketch draws the permutations h -> a h + b mod 2^32; they are applied here to many documents at once,
    which is some ten times faster than its per-document update.

    Args:
        permutations: hash functions, the length of a signature.
        seed: of the permutations.
    """

    def __init__(self, permutations: int, seed: int) -> None:
        drawn = MinHash(num_perm=permutations, seed=seed, scheme="affine32").permutations
        self.factors, self.offsets = (np.asarray(part, dtype=np.uint32) for part in drawn)

    def __call__(self, sets: Sequence[Hashes]) -> Signatures:
        """uint32 [documents, permutations]; each set must hold at least one shingle."""
        signatures = np.empty((len(sets), len(self.factors)), dtype=np.uint32)
        for first, last in _blocks(sets):
            values = finalize(np.concatenate(sets[first:last]).astype(np.uint32))
            lengths = [len(shingles) for shingles in sets[first:last]]
            starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
            for index, (factor, offset) in enumerate(zip(self.factors, self.offsets, strict=True)):
                signatures[first:last, index] = np.minimum.reduceat(values * factor + offset, starts)
        return signatures


def _blocks(sets: Sequence[Hashes]) -> Iterator[tuple[int, int]]:
    """Ranges of documents that together hold about `BLOCK_SHINGLES` shingles, at least one document each."""
    first = held = 0
    for index, shingles in enumerate(sets):
        if held and held + len(shingles) > BLOCK_SHINGLES:
            yield first, index
            first, held = index, 0
        held += len(shingles)
    if first < len(sets):
        yield first, len(sets)


def finalize(values: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """The 32-bit finalizer of MurmurHash3 (Appleby, public domain), which datasketch applies before permuting."""
    values = (values ^ (values >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    values = (values ^ (values >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return values ^ (values >> np.uint32(16))


def bands_and_rows(threshold: float, permutations: int) -> tuple[int, int]:
    """(bands, rows per band) that datasketch finds best at `threshold` when misses weigh 19 times as much."""
    index = MinHashLSH(threshold, permutations, weights=(FALSE_POSITIVE_WEIGHT, FALSE_NEGATIVE_WEIGHT))
    return int(index.b), int(index.r)


def buckets(signatures: Signatures, bands: int, rows: int) -> Iterator[npt.NDArray[np.int64]]:
    """Groups of two and more documents (ascending indices) that agree in all rows of a band, band by band."""
    for band in range(bands):
        key = np.zeros(len(signatures), dtype=np.uint64)
        for column in range(band * rows, (band + 1) * rows):
            key = mix(key + signatures[:, column])
        order = np.argsort(key, kind="stable")
        ends = np.flatnonzero(np.diff(key[order])) + 1
        for group in np.split(order, ends):
            if len(group) > 1:
                yield group
