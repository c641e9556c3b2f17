"""MinHash: the permutations, and the keys that near duplicates share (Broder 1997).

Permutations, bands and rows are datasketch's (scheme `affine32`), which is imported where a threshold asks for it: it
loads scipy for half a second. Signatures are computed by kernel.c, bit-equal to datasketch's on the same hashes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmctl.data.dedup.kernel import Hashes, Shingles, sign

Signatures = npt.NDArray[np.uint32]

# Candidates are verified, so a missed pair costs far more than a needless comparison.
FALSE_POSITIVE_WEIGHT, FALSE_NEGATIVE_WEIGHT = 0.001, 0.999
FOUND = {(0.8, 160): (24, 6)}  # the bands and rows of the defaults, which need not wait for scipy
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: a bijection modulo 2^64


@dataclass(frozen=True)
class Signer:
    """Signatures of shingle sets, equal to those of `datasketch.MinHash(scheme="affine32")` on the same hashes.

    Attributes:
        factors, addends: uint32 [permutations], of h -> h factor + addend mod 2^32.
    """

    factors: npt.NDArray[np.uint32]
    addends: npt.NDArray[np.uint32]

    @classmethod
    def drawn(cls, permutations: int, seed: int) -> Signer:
        """The permutations of datasketch, drawn as it does: odd factors make each a bijection of 32-bit numbers."""
        generator = np.random.RandomState(seed)
        factors = 2 * generator.randint(0, 1 << 31, permutations, dtype=np.uint32) + np.uint32(1)
        return cls(factors, generator.randint(0, 1 << 32, permutations, dtype=np.uint32))

    def __call__(self, given: Shingles) -> Signatures:
        """uint32 [documents, permutations]; all ones for a document without shingles."""
        return sign(given, self.factors, self.addends)[:, : len(self.factors)]


@dataclass(frozen=True)
class Banding:
    """How signatures become keys.

    Attributes:
        signer: makes `bands * rows` values a document.
        bands, rows: two documents are candidates where they agree in all rows of a band.
    """

    signer: Signer
    bands: int
    rows: int

    @classmethod
    def chosen(cls, threshold: float, permutations: int, seed: int) -> Banding:
        """The best bands and rows for `threshold`; values that no band uses are not computed."""
        bands, rows = bands_and_rows(threshold, permutations)
        signer = Signer.drawn(permutations, seed)
        used = bands * rows
        return cls(Signer(signer.factors[:used], signer.addends[:used]), bands, rows)

    def keys(self, given: Shingles) -> Hashes:
        """uint64 [bands, documents]."""
        return band_keys(self.signer(given), self.bands, self.rows)


def band_keys(signatures: Signatures, bands: int, rows: int) -> Hashes:
    """uint64 [bands, documents]: equal where all rows of the band agree."""
    by_value = np.ascontiguousarray(signatures.T)
    keys = np.zeros((bands, len(signatures)), dtype=np.uint64)
    for row in range(rows):
        keys = mix(keys + by_value[row : bands * rows : rows])
    return keys


def mix(values: Hashes) -> Hashes:
    """A bijection of 64-bit numbers whose output bits depend on all input bits; as in kernel.c."""
    values = (values ^ (values >> np.uint64(32))) * MULTIPLIER
    return values ^ (values >> np.uint64(29))


def bands_and_rows(threshold: float, permutations: int) -> tuple[int, int]:
    """(bands, rows per band) that datasketch finds best at `threshold` when misses weigh 999 times as much.

    Two sets of similarity s share a band with probability 1 - (1 - s^rows)^bands (Leskovec, Rajaraman and Ullman,
    Mining of Massive Datasets, 3.4). Where one band would be best, which datasketch refuses, it is two.
    """
    if (threshold, permutations) in FOUND:
        return FOUND[threshold, permutations]
    from datasketch import MinHashLSH

    try:
        index = MinHashLSH(threshold, permutations, weights=(FALSE_POSITIVE_WEIGHT, FALSE_NEGATIVE_WEIGHT))
    except ValueError:
        return 2, permutations // 2
    return int(index.b), int(index.r)
