"""Gopher quality rules (Rae et al. 2021, "Scaling Language Models", section A.1.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llmctl.config.clean import QualityConfig
from llmctl.data.clean.kernel import Rule, Verdict

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
ELLIPSIS = re.compile(r"\.\.\.|…")
LETTER = re.compile(r"[^\W\d_]")
LETTER_OR_DIGIT = re.compile(r"[^\W_]")
BULLETS = ("•", "-")
ELLIPSES = ("...", "…")
AROUND_A_WORD = ".,;:!?\"'()[]{}<>*_`\u201c\u201d\u2018\u2019"


class GopherQuality(Rule):
    """Drops what does not read like prose: too short, too long, symbols, bullets, ellipses, no common words.

    The thresholds are fields of `QualityConfig`; None switches one off. The first rule broken, in the order
    of `measures`, names the reason. Words are what white space separates (the paper names no tokenizer);
    stop words are compared without the punctuation around them and in their own case.
    """

    def __init__(self, config: QualityConfig) -> None:
        self.config = config

    def judge(self, text: str) -> Verdict | None:
        """The first broken rule."""
        for reason, value, least, most in self.measures(text):
            if (least is not None and value < least) or (most is not None and value > most):
                return Verdict(reason, value)
        return None

    def measures(self, text: str) -> Iterator[tuple[str, float, float | None, float | None]]:
        """(reason, value, least allowed, most allowed) of each rule; later ones are computed when asked for."""
        limits = self.config
        words = text.split()
        spelled = [word for word in words if LETTER_OR_DIGIT.search(word)]
        yield "too_few_words", len(spelled), limits.min_words, None
        yield "too_many_words", len(spelled), None, limits.max_words
        mean_length = sum(map(len, spelled)) / max(1, len(spelled))
        yield "words_too_short", mean_length, limits.min_mean_word_length, None
        yield "words_too_long", mean_length, None, limits.max_mean_word_length
        yield "too_many_hashes", text.count("#") / max(1, len(words)), None, limits.max_hash_ratio
        yield "too_many_ellipses", len(ELLIPSIS.findall(text)) / max(1, len(words)), None, limits.max_ellipsis_ratio
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        bullets = sum(line.startswith(BULLETS) for line in lines)
        yield "too_many_bullet_lines", bullets / max(1, len(lines)), None, limits.max_bullet_lines
        ellipses = sum(line.endswith(ELLIPSES) for line in lines)
        yield "too_many_ellipsis_lines", ellipses / max(1, len(lines)), None, limits.max_ellipsis_lines
        alphabetic = sum(1 for word in words if LETTER.search(word)) / max(1, len(words))
        yield "too_few_alphabetic_words", alphabetic, limits.min_alphabetic_words, None
        stop_words = len(STOP_WORDS.intersection(word.strip(AROUND_A_WORD) for word in words))
        yield "too_few_stop_words", stop_words, limits.min_stop_words, None
