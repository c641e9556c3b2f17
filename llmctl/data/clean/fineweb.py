"""FineWeb rules (Penedo et al. 2024, "The FineWeb Datasets", section 3.6)."""

from __future__ import annotations

from collections.abc import Iterator

from llmctl.config.rules import FineWebConfig
from llmctl.data.clean.characters import TERMINALS
from llmctl.data.clean.gopher_repetition import repeated_parts
from llmctl.data.clean.rules import Document, Measure, MeasuredRules


class FineWeb(MeasuredRules):
    """Drops lists and menus: few lines that end like sentences, short lines, repeated lines, many line ends.

    The thresholds are fields of `FineWebConfig`; blank lines are left out, except where line ends are counted.
    """

    def __init__(self, config: FineWebConfig) -> None:
        self.config = config

    def measures(self, document: Document) -> Iterator[Measure]:
        """All measures with their bounds."""
        limits, text = self.config, document.text
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        count = max(1, len(lines))
        yield "no_lines", len(lines), 1, None
        punctuated = sum(line[-1] in TERMINALS for line in lines)
        yield "too_few_punctuated_lines", punctuated / count, limits.min_punctuated_lines, None
        short = sum(len(line) <= limits.short_line_characters for line in lines)
        yield "too_many_short_lines", short / count, None, limits.max_short_lines
        line_ends = text.count("\n")
        share = repeated_parts(lines)[1] / max(1, len(text) - line_ends)
        yield "repeated_line_characters", share, None, limits.max_duplicate_line_characters
        if limits.max_newlines_per_word is not None:
            yield "too_many_newlines", line_ends / max(1, document.words.count), None, limits.max_newlines_per_word
