"""The runs of words that occur more than once in a text."""

from __future__ import annotations

import numpy as np

from llmctl.data.clean.words import Integers

POSITION_BITS = 24
CODE_BITS = 63 - POSITION_BITS


class Ngrams:
    """The runs of words that occur more than once, counted on numbers instead of strings.

    An n-gram can only repeat where its first n-1 words do, so each length looks at the places that the
    length below has left; in most texts these are few.

    Args:
        words: a number for each word, below `vocabulary`; equal words have equal numbers.
        lengths: the length of each word in characters.
        vocabulary: one more than the largest number.
    """

    def __init__(self, words: Integers, lengths: Integers, vocabulary: int) -> None:
        self._words = words
        self._ends = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(lengths)))
        self._vocabulary = max(1, vocabulary)
        self._places = {1: _repeating(np.arange(len(words)), words, self._vocabulary)}

    def places(self, n: int) -> tuple[Integers, Integers]:
        """Where n-grams that occur at least twice start, by n-gram, then ascending; and a number for each such."""
        if n not in self._places:
            starts, codes = self.places(n - 1)
            if not len(starts):
                return starts, codes
            fits = starts + n <= len(self._words)
            starts, codes = starts[fits], codes[fits]
            codes = codes * self._vocabulary + self._words[starts + n - 1]
            self._places[n] = _repeating(starts, codes, len(self._words) * self._vocabulary)
        return self._places[n]

    def repeat(self, n: int) -> bool:
        """Whether any n-gram occurs twice; if not, no longer one does."""
        return len(self.places(n)[0]) > 0

    def top_characters(self, n: int, least: int = 1) -> int:
        """Characters (spaces between words included) of all occurrences of the most frequent n-gram.

        Of several equally frequent ones, the first to occur counts. 0 where there are fewer than n words, or
        where none occurs `least` times.
        """
        starts, codes = self.places(n)
        count, start = 1, 0
        if len(starts):
            counts = np.bincount(codes)
            count = int(counts.max())
            start = int(starts[counts[codes] == count].min())
        if count < least or start + n > len(self._words):
            return 0
        return int(count * (self._ends[start + n] - self._ends[start] + n - 1))

    def repeated_characters(self, n: int) -> int:
        """Characters (without spaces) in n-grams that occurred before, counted from left to right without overlap."""
        starts, codes = self.places(n)
        order = np.argsort(starts)
        seen: set[int] = set()
        characters = free = 0
        for start, code in zip(starts[order].tolist(), codes[order].tolist(), strict=True):
            if start < free:
                continue
            if code in seen:
                characters += int(self._ends[start + n] - self._ends[start])
                free = start + n
            seen.add(code)
        return characters


def _repeating(starts: Integers, codes: Integers, most: int) -> tuple[Integers, Integers]:
    """The starts whose codes (below `most`) occur at least twice, sorted by code, then start; codes from 0 on."""
    if len(starts) < 2:
        return starts[:0], codes[:0]
    if most < 1 << CODE_BITS and int(starts[-1]) < 1 << POSITION_BITS:  # both fit one number, sorted at once
        keys = np.sort(codes << POSITION_BITS | starts)
        codes, starts = keys >> POSITION_BITS, keys & ((1 << POSITION_BITS) - 1)
    else:
        order = np.lexsort((starts, codes))
        codes, starts = codes[order], starts[order]
    same = codes[1:] == codes[:-1]
    after = np.concatenate(([False], same))
    chosen = after | np.concatenate((same, [False]))
    numbers = np.cumsum(~after[chosen]) - 1
    return starts[chosen], numbers
