"""Documents cut into sections or paragraphs, and bounds on the length of what comes out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import pyarrow as pa

from llmctl.config.clean_steps import SegmentConfig
from llmctl.data.clean.kernel import Rule, Verdict, with_text

FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
MARKDOWN_HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t]|$)")
UNDERLINE = re.compile(r"([=\-~^\"'`#*+:.<>_])\1*$")
MOST_TITLE = 200  # characters; a longer line above an underline is no title


class Segments:
    """Each document as several, with the ids `id#1`, `id#2`, …; all else is copied.

    A section is a heading (Markdown `#`; Markdown or reST title with an underline at least as long, maybe with an
    overline) with all that follows up to the next heading. A paragraph is what blank lines part. Fenced code is
    never cut. Every line but blank ones at the cuts lands in exactly one segment.
    """

    def __init__(self, config: SegmentConfig) -> None:
        self.by = config.by

    def cut(self, text: str) -> list[str]:
        """The segments of one text, in order; at least one."""
        lines = text.split("\n")
        starts = section_starts(lines) if self.by == "section" else paragraph_starts(lines)
        cuts = sorted({0, *starts, len(lines)})
        pieces = ["\n".join(lines[start:end]).strip("\n") for start, end in pairwise(cuts)]
        return [piece for piece in pieces if piece.strip()] or [text]

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`batch` with a row for each segment."""
        rows, ids, texts = [], [], []
        pairs = zip(batch.column("id").to_pylist(), batch.column("text").to_pylist(), strict=True)
        for row, (document_id, text) in enumerate(pairs):
            for number, piece in enumerate(self.cut(text), start=1):
                rows.append(row)
                ids.append(f"{document_id}#{number}")
                texts.append(piece)
        batch = with_text(batch.take(pa.array(rows, pa.int64())), texts)
        place = batch.schema.get_field_index("id")
        return batch.set_column(place, batch.schema.field(place), pa.array(ids, pa.string()))


def outside_fences(lines: list[str]) -> Iterator[tuple[int, str]]:
    """(number, line) of every line that is not within fenced code; the fences are within it."""
    fence = ""
    for number, line in enumerate(lines):
        mark = FENCE.match(line)
        if not fence and mark and not (number and _is_title(lines[number - 1], line)):  # reST underlines with ~~~~
            fence = mark[1]
        elif fence:
            if mark and mark[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        else:
            yield number, line


def section_starts(lines: list[str]) -> list[int]:
    """The numbers of the lines with which a section begins."""
    starts: list[int] = []
    above = -2  # the last line outside code
    for number, line in outside_fences(lines):
        if MARKDOWN_HEADING.match(line):
            starts.append(number)
        elif number == above + 1 and number and _is_title(lines[number - 1], line):
            overline = number >= 2 and lines[number - 2].strip() == line.strip()
            starts.append(number - 2 if overline else number - 1)
        above = number
    return starts


def _is_title(line: str, underline: str) -> bool:
    underline = underline.rstrip()
    title = line.strip()
    if not (len(underline) >= 3 and len(title) <= MOST_TITLE and UNDERLINE.match(underline)):
        return False
    letters = any(map(str.isalnum, title))
    return letters and len(underline) >= len(title) and not title.startswith(("- ", "* ", "> ", "|"))


def paragraph_starts(lines: list[str]) -> list[int]:
    """The numbers of the lines with which a paragraph begins: those after a blank line, outside fenced code."""
    return [number + 1 for number, line in outside_fences(lines) if not line.strip() and number + 1 < len(lines)]


class Length(Rule):
    """Drops what is shorter or longer than wanted, in characters."""

    def __init__(self, config: SegmentConfig) -> None:
        self.least = config.min_characters
        self.most = config.max_characters

    def judge(self, text: str) -> Verdict | None:
        """`too_short` or `too_long`."""
        if len(text) < self.least:
            return Verdict("too_short", float(len(text)))
        if self.most is not None and len(text) > self.most:
            return Verdict("too_long", float(len(text)))
        return None
