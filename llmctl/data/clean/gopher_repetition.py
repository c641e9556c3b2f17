"""Gopher repetition rules (Rae et al. 2021, "Scaling Language Models", table A1)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from llmctl.config.clean import RepetitionConfig
from llmctl.data.clean.kernel import Rule, Verdict

PARAGRAPH_END = re.compile(r"\n{2,}")
LINE_END = re.compile(r"\n+")

Integers = npt.NDArray[np.int64]


class GopherRepetition(Rule):
    """Drops what repeats its own paragraphs, lines or word n-grams too much.

    The thresholds are fields of `RepetitionConfig`; None switches one off. Character shares are of the whole
    text's length. The first rule broken names the reason. An n-gram that occurs once is no repetition,
    however short the text.
    """

    def __init__(self, config: RepetitionConfig) -> None:
        self.config = config

    def judge(self, text: str) -> Verdict | None:
        """The first broken rule."""
        for reason, value, most in self.measures(text):
            if value > most:
                return Verdict(reason, value)
        return None

    def measures(self, text: str) -> Iterator[tuple[str, float, float]]:
        """(reason, value, most allowed) of each rule that is on; later ones are computed when asked for."""
        limits, length = self.config, max(1, len(text))
        for unit, parts, most_parts, most_characters in (
            (
                "paragraph",
                PARAGRAPH_END.split(text.strip()),
                limits.max_duplicate_paragraphs,
                limits.max_duplicate_paragraph_characters,
            ),
            ("line", LINE_END.split(text.strip()), limits.max_duplicate_lines, limits.max_duplicate_line_characters),
        ):
            repeated, characters = repeated_parts(parts)
            if most_parts is not None:
                yield f"duplicate_{unit}s", repeated / len(parts), most_parts
            if most_characters is not None:
                yield f"duplicate_{unit}_characters", characters / length, most_characters
        grams = Ngrams(text.split())
        for n, most in sorted((limits.max_top_ngram_characters or {}).items()):
            if not grams.repeat(n):
                break
            yield f"top_{n}gram", grams.top_characters(n) / length, most
        for n, most in sorted((limits.max_duplicate_ngram_characters or {}).items()):
            if not grams.repeat(n):
                break
            yield f"duplicate_{n}gram", grams.repeated_characters(n) / length, most


def repeated_parts(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts have occurred before in the list, and their characters."""
    seen: set[str] = set()
    repeated = characters = 0
    for part in parts:
        if part in seen:
            repeated += 1
            characters += len(part)
        seen.add(part)
    return repeated, characters


class Ngrams:
    """The runs of words that occur more than once, counted on numbers instead of strings.

    An n-gram can only repeat where its first n-1 words do, so each length looks at the places that the
    length below has left; in most texts these are few.
    """

    def __init__(self, words: Sequence[str]) -> None:
        numbers: dict[str, int] = {}
        self._words = np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.int64)
        self._ends = np.concatenate(([0], np.cumsum([len(word) for word in words], dtype=np.int64)))
        self._vocabulary = len(numbers)
        self._places = {1: self._repeating(np.arange(len(words)), self._words)}

    def _repeating(self, starts: Integers, codes: Integers) -> tuple[Integers, Integers]:
        """The starts whose codes occur at least twice, and their codes renumbered from 0."""
        if not len(codes):
            return starts, codes
        _, numbers, counts = np.unique(codes, return_inverse=True, return_counts=True)
        chosen = counts[numbers] > 1
        return starts[chosen], numbers[chosen]

    def places(self, n: int) -> tuple[Integers, Integers]:
        """Where n-grams that occur at least twice start (ascending), and a number for each such n-gram."""
        if n not in self._places:
            starts, codes = self.places(n - 1)
            if not len(starts):
                return starts, codes
            fits = starts + n <= len(self._words)
            starts, codes = starts[fits], codes[fits]
            self._places[n] = self._repeating(starts, codes * self._vocabulary + self._words[starts + n - 1])
        return self._places[n]

    def repeat(self, n: int) -> bool:
        """Whether any n-gram occurs twice; if not, no longer one does."""
        return len(self.places(n)[0]) > 0

    def top_characters(self, n: int) -> int:
        """Characters (spaces between words included) of all occurrences of the most frequent n-gram; 0 if all differ.

        Of several equally frequent ones, the first to occur counts.
        """
        starts, codes = self.places(n)
        if not len(starts):
            return 0
        counts = np.bincount(codes)
        start = starts[np.argmax(counts[codes] == counts.max())]
        return int(counts.max() * (self._ends[start + n] - self._ends[start] + n - 1))

    def repeated_characters(self, n: int) -> int:
        """Characters (without spaces) in n-grams that occurred before, counted from left to right without overlap."""
        starts, codes = self.places(n)
        seen: set[int] = set()
        characters = free = 0
        for start, code in zip(starts.tolist(), codes.tolist(), strict=True):
            if start < free:
                continue
            if code in seen:
                characters += int(self._ends[start + n] - self._ends[start])
                free = start + n
            seen.add(code)
        return characters
