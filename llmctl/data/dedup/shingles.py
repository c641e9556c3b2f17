"""Documents as sets of word n-grams, each n-gram one 64-bit number."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import xxhash

Hashes = npt.NDArray[np.uint64]

WORD = re.compile(r"\w+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: a bijection modulo 2^64
WORDS_REMEMBERED = 1 << 20


class WordHashes(dict[str, int]):
    """xxh64 by word, computed when first asked for."""

    def __missing__(self, word: str) -> int:
        """Compute and remember."""
        value = self[word] = xxhash.xxh64_intdigest(word.encode())
        return value


class Shingler:
    """Turns a text into its set of shingles.

    A word is a run of letters, digits and underscores, case folded. A text of fewer words than `ngram_words`
    is one shingle; a text without words is none. Two different n-grams share a number with probability
    2^-64, so the Jaccard similarity of these sets is exact for all practical purposes.
    """

    def __init__(self, ngram_words: int) -> None:
        self.ngram_words = ngram_words
        self._hashes = WordHashes()

    def __call__(self, text: str) -> Hashes:
        """Sorted unique uint64 shingle hashes of `text`."""
        words = self.word_hashes(text)
        n = min(self.ngram_words, len(words))
        if n == 0:
            return words
        count = len(words) - n + 1
        combined = np.zeros(count, dtype=np.uint64)
        for position in range(n):
            combined = mix(combined * MULTIPLIER + words[position : position + count])
        return np.unique(combined)

    def word_hashes(self, text: str) -> Hashes:
        """uint64 [words], one xxh64 per word in order."""
        words = WORD.findall(text.casefold())
        if len(self._hashes) > WORDS_REMEMBERED:
            self._hashes.clear()
        return np.fromiter(map(self._hashes.__getitem__, words), dtype=np.uint64, count=len(words))


def mix(values: Hashes) -> Hashes:
    """A bijection of 64-bit numbers whose output bits depend on all input bits (xor-shift and multiply)."""
    values = (values ^ (values >> np.uint64(32))) * MULTIPLIER
    return values ^ (values >> np.uint64(29))


def jaccard(one: Hashes, other: Hashes) -> float:
    """Size of the intersection over size of the union of two sorted unique arrays; 0.0 where both are empty."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    union = len(one) + len(other) - shared
    return shared / union if union else 0.0
