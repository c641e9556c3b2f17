"""Gopher repetition rules (Rae et al. 2021, "Scaling Language Models", table A1)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from llmctl.config.data import RepetitionConfig
from llmctl.data.clean.kernel import Rule, Verdict

PARAGRAPH_END = re.compile(r"\n{2,}")
LINE_END = re.compile(r"\n+")

Gram = tuple[str, ...]


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
        words = text.split()
        for n, most in sorted((limits.max_top_ngram_characters or {}).items()):
            yield f"top_{n}gram", top_ngram_characters(words, n) / length, most
        for n, most in sorted((limits.max_duplicate_ngram_characters or {}).items()):
            characters = repeated_ngram_characters(words, n)
            if not characters:  # a longer n-gram repeats only where each shorter one within it does
                return
            yield f"duplicate_{n}gram", characters / length, most


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


def ngrams(words: Sequence[str], n: int) -> list[Gram]:
    """All runs of `n` words, in order."""
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def top_ngram_characters(words: Sequence[str], n: int) -> int:
    """Characters (spaces between words included) of all occurrences of the most frequent n-gram; 0 if all differ.

    Of several equally frequent ones, the first to occur counts.
    """
    counts = Counter(ngrams(words, n))
    if not counts:
        return 0
    gram, count = counts.most_common(1)[0]
    return len(" ".join(gram)) * count if count > 1 else 0


def repeated_ngram_characters(words: Sequence[str], n: int) -> int:
    """Characters (without spaces) in n-grams that occurred before, counted from left to right without overlap."""
    grams = ngrams(words, n)
    if len(set(grams)) == len(grams):
        return 0
    seen: set[Gram] = set()
    characters = position = 0
    while position < len(grams):
        gram = grams[position]
        if gram in seen:
            characters += sum(map(len, gram))
            position += n
        else:
            seen.add(gram)
            position += 1
    return characters
