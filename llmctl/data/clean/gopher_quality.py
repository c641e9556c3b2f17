"""Gopher quality rules (Rae et al. 2021, "Scaling Language Models", section A.1.1)."""

from __future__ import annotations

from collections.abc import Iterator

from llmctl.config.rules import QualityConfig
from llmctl.data.clean.rules import Document, Measure, MeasuredRules

BULLETS = ("•", "-")
ELLIPSES = ("...", "…")


class GopherQuality(MeasuredRules):
    """Drops what does not read like prose: too short, too long, symbols, bullets, ellipses, no common words.

    The thresholds are fields of `QualityConfig`. Blank lines count as lines, and stop words count in lower
    case only, as in datatrove.
    """

    def __init__(self, config: QualityConfig) -> None:
        self.config = config

    def measures(self, document: Document) -> Iterator[Measure]:
        """All measures with their bounds."""
        limits, text, words = self.config, document.text, document.words
        yield "too_few_words", words.spelled, limits.min_words, None
        yield "too_many_words", words.spelled, None, limits.max_words
        mean_length = words.spelled_characters / max(1, words.spelled)
        yield "words_too_short", mean_length, limits.min_mean_word_length, None
        yield "words_too_long", mean_length, None, limits.max_mean_word_length
        count = max(1, words.count)
        yield "too_many_hashes", text.count("#") / count, None, limits.max_hash_ratio
        ellipses = sum(map(text.count, ELLIPSES))
        yield "too_many_ellipses", ellipses / count, None, limits.max_ellipsis_ratio
        lines = max(1, len(document.lines))
        bullets = sum(line.lstrip().startswith(BULLETS) for line in document.lines)
        yield "too_many_bullet_lines", bullets / lines, None, limits.max_bullet_lines
        # Without an ellipsis in the text no line ends in one.
        endings = sum(line.rstrip().endswith(ELLIPSES) for line in document.lines) if ellipses else 0
        yield "too_many_ellipsis_lines", endings / lines, None, limits.max_ellipsis_lines
        yield "too_few_alphabetic_words", words.alphabetic / count, limits.min_alphabetic_words, None
        yield "too_few_stop_words", words.stop_words, limits.min_stop_words, None
