"""How alike two texts are by their words in order: ROUGE-L, and what was seen before."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """Its words, whatever their case."""
    return WORD.findall(text.casefold())


def rouge_l(one: Sequence[str], other: Sequence[str]) -> float:
    """F1 of the longest common subsequence of two lists of words (Lin 2004); 0 where one is empty."""
    if not one or not other:
        return 0.0
    lengths = [0] * (len(other) + 1)  # of the longest one up to each place of `other`
    for word in one:
        before = 0
        for place, against in enumerate(other, start=1):
            above = lengths[place]
            lengths[place] = before + 1 if word == against else max(above, lengths[place - 1])
            before = above
    return 2 * lengths[-1] / (len(one) + len(other))


class Known:
    """Texts that are there, against which new ones are held.

    Args:
        most_similar: from which ROUGE-L on a text counts as known; None where none does.
        texts: the first of them.
    """

    def __init__(self, most_similar: float | None, texts: Iterable[str] = ()) -> None:
        self._most_similar = most_similar
        self._there: list[tuple[list[str], Counter[str]]] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """One more."""
        words = words_of(text)
        self._there.append((words, Counter(words)))

    def holds(self, text: str) -> bool:
        """Whether a text that is there is as alike; two texts without a word are alike."""
        if self._most_similar is None:
            return False
        words = words_of(text)
        counts = Counter(words)
        return any(self._alike(words, counts, *there) for there in self._there)

    def _alike(self, words: list[str], counts: Counter[str], others: list[str], there: Counter[str]) -> bool:
        assert self._most_similar is not None, "asked for before"
        both = len(words) + len(others)
        if not both:
            return True
        least = self._most_similar * both / 2  # words that must be common in order; those common at all are no fewer
        if min(len(words), len(others)) < least or (counts & there).total() < least:
            return False
        return rouge_l(words, others) >= self._most_similar
