"""The alphabet of byte-level BPE: one printable character for each byte (Radford et al., 2019, GPT-2).

Bytes that print in Latin-1 stand for themselves; the others follow from U+0100 on, in order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
OTHERS = tuple(byte for byte in range(256) if byte not in PRINTABLE)
CHARACTERS = {byte: chr(byte) for byte in PRINTABLE} | {byte: chr(256 + at) for at, byte in enumerate(OTHERS)}
BYTES = {character: byte for byte, character in CHARACTERS.items()}
ALPHABET = tuple(CHARACTERS[byte] for byte in range(256))  # by byte
APART = "\U0010fffe"  # no character: between pieces


# To Latin-1, whose encoding is then the bytes; what could be mistaken for a byte becomes what Latin-1 lacks.
TO_LATIN = dict.fromkeys(range(128, 256), 65535) | {ord(sign): byte for sign, byte in BYTES.items()}


def spelled(content: bytes) -> str:
    """`content` as a vocabulary of byte-level BPE writes it."""
    return "".join(CHARACTERS[byte] for byte in content)


def bytes_of(piece: str) -> bytes:
    """The bytes that a piece stands for; a character outside the alphabet stands for itself in UTF-8."""
    with contextlib.suppress(UnicodeEncodeError):
        return piece.translate(TO_LATIN).encode("latin-1")
    return b"".join(bytes([BYTES[sign]]) if sign in BYTES else sign.encode() for sign in piece)


def all_bytes_of(pieces: Iterable[str]) -> list[bytes]:
    """`bytes_of` each, several times as fast: one call translates all of them."""
    given = list(pieces)
    turned = APART.join(given).translate(TO_LATIN).split(APART)
    if len(turned) == len(given):
        with contextlib.suppress(UnicodeEncodeError):
            return [piece.encode("latin-1") for piece in turned]
    return [bytes_of(piece) for piece in given]
