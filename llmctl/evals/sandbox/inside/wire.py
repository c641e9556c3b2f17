"""What crosses the border of a process: frames of JSON in which every value is plain data.

A value of any other type does not cross: what a program answers is data that the checker compares itself, so that no
code of the program takes part in the verdict. JSON has no tuples, sets, bytes or dictionaries with keys other than
strings; they are written as an object with one tag, so an object on the wire is never a dictionary.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

FRAME_BYTES = 8 << 20
_HEADER = struct.Struct("<I")
_ATOMS = frozenset((type(None), bool, str, float))
_SHORT_INT = 1 << 4096  # longer ones are written in base 16: decimal takes quadratic time
_SEQUENCES: dict[type, Callable[[Any], Any]] = {kind: kind for kind in (list, tuple, set, frozenset)}
# Types that are written as something simpler, with the way there and back.
_WRITTEN: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    int: (hex, lambda text: int(text, 16)),
    bytes: (bytes.hex, bytes.fromhex),
    bytearray: (bytearray.hex, bytearray.fromhex),
    complex: (lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    range: (lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
    Decimal: (str, Decimal),
    Fraction: (str, Fraction),
    datetime: (datetime.isoformat, datetime.fromisoformat),
    date: (date.isoformat, date.fromisoformat),
    time: (time.isoformat, time.fromisoformat),
    timedelta: (lambda value: [value.days, value.seconds, value.microseconds], lambda parts: timedelta(*parts)),
}
_KINDS = {kind.__name__: kind for kind in (*_SEQUENCES, *_WRITTEN)}


class NotDataError(TypeError):
    """A value is no plain data."""


def encode(value: Any, other: Callable[[Any], dict[str, Any]] | None = None) -> Any:
    """`value` as what JSON can say.

    Args:
        value: plain data; subclasses count as what they derive from.
        other: what to write for anything else.

    Raises:
        NotDataError: something in it is no plain data, and `other` does not know it either.
    """
    kind = type(value)
    if kind in _ATOMS or (kind is int and -_SHORT_INT < value < _SHORT_INT) or (kind is list and _plain(value)):
        return value
    if kind is dict:
        return {"dict": [[encode(key, other), encode(item, other)] for key, item in value.items()]}
    if kind in _SEQUENCES:
        items = [encode(item, other) for item in value]
        return items if kind is list else {kind.__name__: items}
    if kind in _WRITTEN:
        return {kind.__name__: _WRITTEN[kind][0](value)}
    return _encode_rest(value, other)


def _plain(values: list[Any]) -> bool:
    """Whether JSON can take the list as it is; long lists of numbers are common and must be quick."""
    kinds = set(map(type, values))
    return kinds <= _ATOMS or (kinds == {int} and all(-_SHORT_INT < value < _SHORT_INT for value in values))


def _encode_rest(value: Any, other: Callable[[Any], dict[str, Any]] | None) -> Any:
    """What derives from a plain type (a named tuple, a counter, an enumeration of integers), and all else."""
    for plain, copied in _BASES:
        if isinstance(value, plain):
            return encode(copied(value), other)
    if other is None:
        raise NotDataError(f"a {type(value).__name__} is no plain data")
    return other(value)


# How the plain part of a subclass's value is had without calling what the subclass overrides.
_BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, int.__index__),
    (float, float.__float__),
    (dict, lambda value: dict(dict.items(value))),
    (list, lambda value: list(list.__iter__(value))),
    (tuple, lambda value: tuple(tuple.__iter__(value))),
    (set, lambda value: set(set.__iter__(value))),
    (frozenset, lambda value: frozenset(frozenset.__iter__(value))),
)


def decode(said: Any, other: Callable[[str, Any], Any] | None = None) -> Any:
    """The value that `encode` wrote.

    Args:
        said: what JSON said.
        other: what a tag that is none of ours means.

    Raises:
        NotDataError: it is none of what `encode` writes.
    """
    if isinstance(said, list):
        return [decode(item, other) for item in said]
    if not isinstance(said, dict):
        return said
    try:
        ((tag, held),) = said.items()
        return _decode_tagged(tag, held, other)
    except (ValueError, TypeError, ArithmeticError, AttributeError) as error:
        raise NotDataError(f"a malformed answer: {error}") from None


def _decode_tagged(tag: str, held: Any, other: Callable[[str, Any], Any] | None) -> Any:
    if tag == "dict":
        return {decode(key, other): decode(item, other) for key, item in held}
    kind = _KINDS.get(tag)
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](decode(item, other) for item in held)
    if kind in _WRITTEN:
        return _WRITTEN[kind][1](held)
    if other is None:
        raise NotDataError(f"an answer with the unknown mark {tag!r:.40}")
    return other(tag, held)


def write_frame(fd: int, message: Any) -> None:
    """Send one message.

    Raises:
        NotDataError: it is longer than a frame may be.
    """
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > FRAME_BYTES:
        raise NotDataError(f"{len(body)} bytes at once, more than {FRAME_BYTES}")
    rest = memoryview(_HEADER.pack(len(body)) + body)
    while rest:
        rest = rest[os.write(fd, rest) :]


def read_frame(fd: int) -> Any:
    """The next message.

    Raises:
        EOFError: the other side has ended, in the middle of a message as well.
        NotDataError: what comes is no frame.
    """
    (size,) = _HEADER.unpack(_exactly(fd, _HEADER.size))
    if size > FRAME_BYTES:
        raise NotDataError(f"{size} bytes at once, more than {FRAME_BYTES}")
    try:
        return json.loads(_exactly(fd, size))
    except (ValueError, RecursionError) as error:
        raise NotDataError(f"a malformed answer: {error}") from None


def _exactly(fd: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            raise EOFError("the other side has ended")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
