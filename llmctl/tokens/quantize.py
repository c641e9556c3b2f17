"""Rounding the scores of a unigram model, so that equal paths tie exactly in every implementation.

SentencePiece adds scores in 32-bit floats, `tokenizers` in 64-bit ones. On the grid used here both sums are
exact over a segment, so they choose the same path. The model's file is a protocol buffer; only the four bytes of
each score change in place (github.com/google/sentencepiece, src/sentencepiece_model.proto: ModelProto.pieces = 1,
SentencePiece.score = 2).
"""

from __future__ import annotations

import struct

SCORE_GRID = 2.0**-8  # 24 bits of mantissa: sums are exact up to 2^16

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
PIECES_FIELD = 1
SCORE_FIELD = 2


def quantized(model: bytes) -> bytes:
    """`model` with every piece's score rounded to a multiple of `SCORE_GRID`."""
    content = bytearray(model)
    at = 0
    while at < len(content):
        field, kind, at = _tag(content, at)
        start, end = _extent(content, at, kind)
        if (field, kind) == (PIECES_FIELD, BYTES):
            _round_score(content, start, end)
        at = end
    return bytes(content)


def _round_score(content: bytearray, at: int, end: int) -> None:
    while at < end:
        field, kind, at = _tag(content, at)
        start, after = _extent(content, at, kind)
        if (field, kind) == (SCORE_FIELD, FIXED32):
            (score,) = struct.unpack_from("<f", content, start)
            struct.pack_into("<f", content, start, round(score / SCORE_GRID) * SCORE_GRID)
        at = after


def _tag(content: bytearray, at: int) -> tuple[int, int, int]:
    """Field number and wire type at `at`, and where its value begins."""
    tag, at = _varint(content, at)
    return tag >> 3, tag & 7, at


def _extent(content: bytearray, at: int, kind: int) -> tuple[int, int]:
    """Where the payload of a value of wire type `kind` begins and ends."""
    if kind == VARINT:
        return at, _varint(content, at)[1]
    if kind == BYTES:
        length, at = _varint(content, at)
        return at, at + length
    if kind in (FIXED64, FIXED32):
        return at, at + (8 if kind == FIXED64 else 4)
    raise ValueError(f"wire type {kind} at byte {at} is not part of a SentencePiece model")


def _varint(content: bytearray, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
