"""The little of protocol buffers that a SentencePiece model needs: reading its fields, and writing them.

Field numbers are those of github.com/google/sentencepiece, src/sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

PIECES, TRAINER, NORMALIZER = 1, 2, 3  # of ModelProto
PIECE_TEXT, PIECE_SCORE, PIECE_TYPE = 1, 2, 3  # of SentencePiece
MODEL_TYPE, VOCAB_SIZE, BYTE_FALLBACK, UNK_ID, BOS_ID, EOS_ID, PAD_ID = 3, 4, 35, 40, 41, 42, 43  # of TrainerSpec
RULE, CHARSMAP, DUMMY_PREFIX, EXTRA_SPACES, ESCAPE = 1, 2, 3, 4, 5  # of NormalizerSpec
MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass(frozen=True)
class Normalizer:
    """What a SentencePiece model does to text before it looks for pieces.

    Attributes:
        rule: `identity`, `nmt_nfkc`, …
        charsmap: its compiled replacements; empty for none.
        adds_space: whether a space is put before the text.
        trims: whether spaces at the ends go, and runs of them become one.
    """

    rule: str = ""
    charsmap: bytes = b""
    adds_space: bool = True
    trims: bool = True

    @property
    def changes(self) -> tuple[str, ...]:
        """What of it a reader cannot undo."""
        return (
            *((f"text is normalised first: {self.rule or 'charsmap'}",) if self.charsmap else ()),
            *(("runs of spaces are shortened",) if self.trims else ()),
        )


def normalizer_of(model: bytes) -> Normalizer:
    """The normalizer of a serialised SentencePiece model."""
    values = _fields_of(model, NORMALIZER)
    return Normalizer(
        rule=bytes(values.get(RULE, b"")).decode(errors="replace") if isinstance(values.get(RULE), bytes) else "",
        charsmap=charsmap if isinstance(charsmap := values.get(CHARSMAP, b""), bytes) else b"",
        adds_space=bool(values.get(DUMMY_PREFIX, 1)),
        trims=bool(values.get(EXTRA_SPACES, 1)),
    )


def model_type_of(model: bytes) -> str:
    """Kind of a serialised SentencePiece model: unigram, bpe, word or char."""
    return MODEL_TYPES.get(int(_fields_of(model, TRAINER).get(MODEL_TYPE, 1)), "")


def _fields_of(model: bytes, message: int) -> dict[int, int | bytes]:
    """Fields of the message `message` of a model, the last of each number."""
    inner = [value for number, value in fields(model) if number == message and isinstance(value, bytes)]
    return dict(fields(inner[-1])) if inner else {}


def fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a message's fields, in order; fixed-width values as their bytes."""
    at = 0
    while at < len(content):
        number, kind, at = tag(content, at)
        start, end = extent(content, at, kind)
        yield number, varint(content, start)[0] if kind == VARINT else bytes(content[start:end])
        at = end


def tag(content: bytes | bytearray, at: int) -> tuple[int, int, int]:
    """Field number and wire type at `at`, and where its value begins."""
    value, at = varint(content, at)
    return value >> 3, value & 7, at


def extent(content: bytes | bytearray, at: int, kind: int) -> tuple[int, int]:
    """Where the payload of a value of wire type `kind` begins and ends."""
    if kind == VARINT:
        return at, varint(content, at)[1]
    if kind == BYTES:
        length, at = varint(content, at)
        return at, at + length
    if kind in (FIXED64, FIXED32):
        return at, at + (8 if kind == FIXED64 else 4)
    raise ValueError(f"wire type {kind} at byte {at} is not part of a SentencePiece model")


def varint(content: bytes | bytearray, at: int) -> tuple[int, int]:
    """A number of variable length at `at`, and where it ends."""
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def written_model(
    pieces: Iterable[tuple[str, float, int]],
    *,
    model_type: int,
    normalizer: Normalizer,
    ids: tuple[int, int, int, int],
) -> bytes:
    """A SentencePiece model.

    Args:
        pieces: text, score and type of each id.
        model_type: 1 for unigram, 2 for BPE.
        normalizer: what happens to text first.
        ids: of the unknown piece, BOS, EOS and padding; -1 for none.
    """
    content = bytearray()
    count, has_bytes = 0, False
    for text, score, kind in pieces:
        piece = _bytes(PIECE_TEXT, text.encode()) + _key(PIECE_SCORE, FIXED32) + struct.pack("<f", score)
        content += _bytes(PIECES, piece + _number(PIECE_TYPE, kind))
        count += 1
        has_bytes = has_bytes or kind == 6  # BYTE
    trainer = _number(MODEL_TYPE, model_type) + _number(VOCAB_SIZE, count) + _number(BYTE_FALLBACK, has_bytes)
    for number, index in zip((UNK_ID, BOS_ID, EOS_ID, PAD_ID), ids, strict=True):
        trainer += _number(number, index)
    spec = _bytes(RULE, normalizer.rule.encode()) + _bytes(CHARSMAP, normalizer.charsmap)
    spec += _number(DUMMY_PREFIX, normalizer.adds_space) + _number(EXTRA_SPACES, normalizer.trims) + _number(ESCAPE, 1)
    return bytes(content) + _bytes(TRAINER, trainer) + _bytes(NORMALIZER, spec)


def _key(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _bytes(number: int, content: bytes) -> bytes:
    return _key(number, BYTES) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _key(number, VARINT) + _varint(value & (1 << 64) - 1)  # negative ones in two's complement


def _varint(value: int) -> bytes:
    content = bytearray()
    while value >= 0x80:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(content) + bytes([value])
