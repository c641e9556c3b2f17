"""Word n-grams counted in batches of documents: each word a number, each n-gram one 64-bit number."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import xxhash

from llmctl.data.dedup.minhash import MULTIPLIER, mix
from llmctl.data.stats.sketch import HeavyHitters, Ints, Keys

WORD = re.compile(r"\w+")


class NgramCounter:
    """Counts word n-grams of several lengths. A word is a run of letters, digits and underscores, case folded.

    N-grams do not reach from one document into the next. Two different ones share a number with probability
    2^-64.

    Args:
        lengths: words per n-gram.
        capacity: different n-grams kept, of each length.
    """

    def __init__(self, lengths: Sequence[int], capacity: int) -> None:
        self.found = {length: HeavyHitters(capacity) for length in lengths}

    def add(self, texts: Sequence[str]) -> Ints:
        """Count the n-grams of `texts`; the number of words of each."""
        words: list[str] = []
        counts: list[int] = []
        for text in texts:
            own = WORD.findall(text.casefold())
            words += own
            counts.append(len(own))
        lengths = np.array(counts, dtype=np.int64)
        hashes = _hashes(words)
        left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))  # words to the document's end
        for length, found in self.found.items():
            starts = np.flatnonzero(left >= length)
            keys = np.zeros(len(starts), dtype=np.uint64)
            for place in range(length):
                keys = mix(keys * MULTIPLIER + hashes[starts + place])
            unique, first, often = np.unique(keys, return_index=True, return_counts=True)
            found.add(unique, often, _Texts(words, starts[first], length))
        return lengths

    def merge(self, other: NgramCounter) -> None:
        """Add what another one has counted."""
        for length, found in self.found.items():
            found.merge(other.found[length])


def _hashes(words: Sequence[str]) -> Keys:
    known: dict[str, int] = {}
    for word in words:
        if word not in known:
            known[word] = xxhash.xxh64_intdigest(word.encode())
    return np.fromiter((known[word] for word in words), dtype=np.uint64, count=len(words))


class _Texts:
    """Gives the texts of the n-grams that begin at `starts`, by their places in it."""

    def __init__(self, words: Sequence[str], starts: Ints, length: int) -> None:
        self._words, self._starts, self._length = words, starts, length

    def __call__(self, places: Ints) -> list[str]:
        return [" ".join(self._words[start : start + self._length]) for start in self._starts[places].tolist()]
