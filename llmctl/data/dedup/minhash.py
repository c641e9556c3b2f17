"""MinHash: the permutations, and the keys that near duplicates share (Broder 1997).

Permutations, bands and rows are those of datasketch 2.0 (scheme `affine32`), to the bit: the tests compare them.
They are computed here because datasketch imports scipy, which takes half a second at every start.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmctl.data.dedup.kernel import Hashes, Shingles, sign

Signatures = npt.NDArray[np.uint32]

# Candidates are verified, so a missed pair costs far more than a needless comparison.
FALSE_POSITIVE_WEIGHT, FALSE_NEGATIVE_WEIGHT = 0.01, 0.99
QUADRATURE_NODES = 128  # exact for polynomials of degree 255: every combination of up to 255 permutations
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
        """The permutations that datasketch draws: odd factors, so that each is a bijection of 32-bit numbers."""
        generator = np.random.RandomState(seed)  # what datasketch takes; its stream is frozen by NumPy's policy
        factors = generator.randint(0, 1 << 31, permutations, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
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
    """(bands, rows per band) that are best at `threshold` when misses weigh 99 times as much as false candidates.

    Two sets of similarity s share a band with probability 1 - (1 - s^rows)^bands (Leskovec, Rajaraman and Ullman,
    Mining of Massive Datasets, 3.4). What is minimised is the weighted sum of its integral below the threshold
    and of its complement's above; of equal ones the fewest bands, but at least two.
    """
    pairs = [(bands, rows) for bands in range(2, permutations + 1) for rows in range(1, permutations // bands + 1)]
    bands, rows = np.array(pairs).T
    nodes, weights = np.polynomial.legendre.leggauss(QUADRATURE_NODES)
    below, above = threshold * (nodes + 1) / 2, threshold + (1 - threshold) * (nodes + 1) / 2
    missed = [(1 - similarity ** rows[:, None]) ** bands[:, None] for similarity in (below, above)]
    false_positive = (1 - missed[0]) @ weights * threshold / 2
    false_negative = missed[1] @ weights * (1 - threshold) / 2
    error = FALSE_POSITIVE_WEIGHT * false_positive + FALSE_NEGATIVE_WEIGHT * false_negative
    best = pairs[int(np.argmin(error))]
    return best[0], best[1]
