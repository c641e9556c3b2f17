"""Gopher repetition rules (Rae et al. 2021, "Scaling Language Models", table A1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmctl.config.rules import RepetitionConfig
from llmctl.data.clean.ngrams import Ngrams
from llmctl.data.clean.rules import Document, Measure, MeasuredRules


class GopherRepetition(MeasuredRules):
    """Drops what repeats its own paragraphs, lines or word n-grams too much.

    The thresholds are fields of `RepetitionConfig`. Character shares are of the whole text's length.
    """

    def __init__(self, config: RepetitionConfig) -> None:
        self.config = config

    def measures(self, document: Document) -> Iterator[Measure]:
        """All measures with their bounds."""
        limits, text, length = self.config, document.text, max(1, len(document.text))
        paragraphs = paragraphs_of(text)
        repeated, characters = repeated_parts(paragraphs)
        yield "duplicate_paragraphs", repeated / len(paragraphs), None, limits.max_duplicate_paragraphs
        most = limits.max_duplicate_paragraph_characters
        yield "duplicate_paragraph_characters", characters / length, None, most
        lines = lines_of(text)
        repeated, characters = repeated_parts(lines)
        yield "duplicate_lines", repeated / len(lines), None, limits.max_duplicate_lines
        yield "duplicate_line_characters", characters / length, None, limits.max_duplicate_line_characters
        if limits.max_top_ngram_characters or limits.max_duplicate_ngram_characters:
            yield from self._ngram_measures(document, length)

    def _ngram_measures(self, document: Document, length: int) -> Iterator[Measure]:
        limits, words = self.config, document.words
        grams = Ngrams(words.numbers, words.lengths, document.vocabulary.size)
        for n, most in sorted((limits.max_top_ngram_characters or {}).items()):
            characters = grams.top_characters(n, limits.min_top_ngram_count)
            yield f"top_{n}gram", characters / length, None, most
        for n, most in sorted((limits.max_duplicate_ngram_characters or {}).items()):
            if not grams.repeat(n):
                break
            yield f"duplicate_{n}gram", grams.repeated_characters(n) / length, None, most


def paragraphs_of(text: str) -> list[str]:
    r"""The parts between runs of two or more line ends, the text stripped: a split at `\n{2,}`, but faster."""
    # Of an odd run of line ends one is left, at the start of the part behind it.
    parts = [part.lstrip("\n") for part in text.strip().split("\n\n")]
    return [part for part in parts if part] or [""]


def lines_of(text: str) -> list[str]:
    r"""The parts between line ends, an empty one at either end of the text counted: a split at `\n+`, but faster."""
    lines = [line for line in text.split("\n") if line]
    return lines + [""] * (text.startswith("\n") + text.endswith("\n")) or [""]


def repeated_parts(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts have occurred before in the list, and their characters."""
    different = set(parts)
    if len(different) == len(parts):
        return 0, 0
    return len(parts) - len(different), sum(map(len, parts)) - sum(map(len, different))
