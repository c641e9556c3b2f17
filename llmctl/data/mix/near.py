"""Which documents are near duplicates of held-out ones: exactly, by an index of the held-out shingles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from llmctl.data.dedup import kernel
from llmctl.data.dedup.kernel import Hashes
from llmctl.store.files import publish

Ints = npt.NDArray[np.int64]

ARRAYS = ("shingles", "offsets", "vocabulary", "rank", "posting_rank", "posting_document")
ROUNDING = 1e-9


def shingle_sets(texts: Sequence[str], ngram_words: int) -> list[Hashes]:
    """Sorted unique uint64 of each text, at least one.

    A text without words is the hash of itself, so that equal ones are found too.
    """
    if not texts:
        return []
    found = kernel.shingles(kernel.normalise(pa.array(texts, pa.string())), ngram_words).sets()
    sets = np.split(found.hashes, found.offsets[1:-1])
    return [
        one if len(one) else np.array([xxhash.xxh64_intdigest(text.encode())], dtype=np.uint64)
        for one, text in zip(sets, texts, strict=True)
    ]


def jaccard(one: Hashes, other: Hashes) -> float:
    """Size of the intersection over size of the union of two sorted unique arrays."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def prefix_length(size: int, threshold: float) -> int:
    """How many of a set's shingles must be looked at: two sets that reach the threshold share one of these.

    Prefix filtering (Chaudhuri et al. 2006; Bayardo et al. 2007): if J(x, y) >= t, then they share at least
    t |x| shingles, so the |x| - ceil(t |x|) + 1 first ones of both in any common order meet.
    """
    return size - math.ceil(threshold * size - ROUNDING) + 1


class HeldoutIndex:
    """The shingle sets of the held-out documents, searchable by their rarest shingles.

    Memory: 8 bytes per shingle of a held-out document, 8 per different one and 12 per posting, on the disk and
    mapped, so all processes share them.

    Attributes:
        shingles, offsets: the sets, back to back, and where each begins.
        vocabulary, rank: every shingle, sorted, and its place when the rarest comes first.
        posting_rank, posting_document: which documents have a shingle of that rank in their prefix.
    """

    shingles: Hashes
    offsets: Ints
    vocabulary: Hashes
    rank: Ints
    posting_rank: Ints
    posting_document: npt.NDArray[np.int32]

    def __init__(self, directory: Path, threshold: float) -> None:
        self._threshold = threshold
        for name in ARRAYS:
            setattr(self, name, np.load(directory / f"{name}.npy", mmap_mode="r"))

    @classmethod
    def build(cls, sets: Sequence[Hashes], threshold: float, directory: Path) -> HeldoutIndex:
        """Write the index of `sets` into `directory` and open it."""
        lengths = np.array([len(one) for one in sets], dtype=np.int64)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        shingles = np.concatenate([np.empty(0, np.uint64), *sets])
        vocabulary, places, counts = np.unique(shingles, return_inverse=True, return_counts=True)
        rank = np.empty(len(vocabulary), dtype=np.int64)
        rank[np.lexsort((vocabulary, counts))] = np.arange(len(vocabulary))
        document = np.repeat(np.arange(len(sets), dtype=np.int32), lengths)
        order = np.lexsort((rank[places], document))
        prefixes = np.array([prefix_length(int(size), threshold) for size in lengths], dtype=np.int64)
        within = np.arange(len(shingles)) - np.repeat(offsets[:-1], lengths)
        chosen = order[within < np.repeat(prefixes, lengths)]
        chosen = chosen[np.argsort(rank[places[chosen]], kind="stable")]
        arrays = (shingles, offsets, vocabulary, rank, rank[places[chosen]], document[chosen])
        for name, array in zip(ARRAYS, arrays, strict=True):
            with publish(directory / f"{name}.npy") as handle:
                np.save(handle, array)
        return cls(directory, threshold)

    def has_near(self, shingles: Hashes) -> bool:
        """Whether the set reaches the threshold with that of any held-out document."""
        place = np.minimum(np.searchsorted(self.vocabulary, shingles), max(0, len(self.vocabulary) - 1))
        known = self.vocabulary[place] == shingles if len(self.vocabulary) else np.zeros(len(shingles), np.bool_)
        unknown = len(shingles) - int(known.sum())  # these are the rarest: no held-out document has them
        wanted = prefix_length(len(shingles), self._threshold) - unknown
        if wanted <= 0:
            return False
        ranks = np.sort(self.rank[place[known]])[:wanted]
        starts = np.searchsorted(self.posting_rank, ranks, side="left")
        ends = np.searchsorted(self.posting_rank, ranks, side="right")
        found = [self.posting_document[start:end] for start, end in zip(starts, ends, strict=True) if start < end]
        candidates = np.unique(np.concatenate(found)).tolist() if found else []
        return any(self._is_near(shingles, document) for document in candidates)

    def _is_near(self, shingles: Hashes, document: int) -> bool:
        other = self.shingles[self.offsets[document] : self.offsets[document + 1]]
        bound = min(len(shingles), len(other)) / max(len(shingles), len(other))
        return bound >= self._threshold and jaccard(shingles, other) >= self._threshold
