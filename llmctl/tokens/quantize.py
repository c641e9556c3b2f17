"""Rounding the scores of a unigram model, so that equal paths tie exactly in every implementation.

SentencePiece adds scores in 32-bit floats, `tokenizers` in 64-bit ones. On the grid used here both sums are
exact over a segment, so they choose the same path. The model's file is a protocol buffer; only the four bytes of
each score change in place.
"""

from __future__ import annotations

import struct

from llmctl.tokens.protobuf import BYTES, FIXED32, PIECE_SCORE, PIECES, extent, tag

SCORE_GRID = 2.0**-8  # 24 bits of mantissa: sums are exact up to 2^16


def quantized(model: bytes) -> bytes:
    """`model` with every piece's score rounded to a multiple of `SCORE_GRID`."""
    content = bytearray(model)
    at = 0
    while at < len(content):
        field, kind, at = tag(content, at)
        start, end = extent(content, at, kind)
        if (field, kind) == (PIECES, BYTES):
            _round_score(content, start, end)
        at = end
    return bytes(content)


def _round_score(content: bytearray, at: int, end: int) -> None:
    while at < end:
        field, kind, at = tag(content, at)
        start, after = extent(content, at, kind)
        if (field, kind) == (PIECE_SCORE, FIXED32):
            (score,) = struct.unpack_from("<f", content, start)
            struct.pack_into("<f", content, start, round(score / SCORE_GRID) * SCORE_GRID)
        at = after
