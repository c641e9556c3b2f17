r"""Cutting text where no piece can cross, so that a tokenizer sees short strings and gives the same ids.

Our tokenizers are trained so that a piece is either a run of newlines, or holds none; and a space stands in
a piece only at its front or in a run of spaces. Both BPE merges and the Viterbi path of a unigram model
therefore fall apart at those places, and cutting there is exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

SEGMENT_CHARS = 4096
META_SPACE = "\u2581"  # SentencePiece's own sign for a space

BOUNDARY = r"(?:(?<=\n)(?=[^\n])|(?<=[^\n])(?=\n)|(?<=[^ \n])(?= )|\Z)"
SEGMENT = re.compile(rf".{{1,{SEGMENT_CHARS}}}{BOUNDARY}|.+?{BOUNDARY}", re.DOTALL)


def segments(text: str) -> Iterator[str]:
    """Parts of `text`, in order and complete, of at most `SEGMENT_CHARS` characters unless one word is longer.

    Every U+2581 is a part of its own: SentencePiece would take it for a space.
    """
    if len(text) <= SEGMENT_CHARS and META_SPACE not in text:
        yield text
        return
    for number, part in enumerate(text.split(META_SPACE)):
        if number:
            yield META_SPACE
        yield from SEGMENT.findall(part)
