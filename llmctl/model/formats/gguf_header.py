"""The header of a GGUF file, versions 2 and 3: metadata and the places of tensors, with every promise checked.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Nothing is allocated that the file's own length
does not warrant, and whatever does not fit is told with the name of the field or tensor.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from llmctl.config.errors import InputError, IntegrityError
from llmctl.store.files import explained

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT_KEY, DEFAULT_ALIGNMENT = "general.alignment", 32
MOST_DIMENSIONS, MOST_ITEMS = 4, 1 << 62
COPY_AGAIN = "copy or download the file again"

SCALARS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 10: "<Q", 11: "<q", 12: "<d"}
BOOLEAN, STRING, ARRAY = 7, 8, 9


@dataclass(frozen=True)
class Encoding:
    """How the numbers of a tensor are kept: blocks of `items` numbers in `bytes` bytes."""

    name: str
    items: int
    bytes: int


ENCODINGS: Final = {
    0: Encoding("F32", 1, 4),
    1: Encoding("F16", 1, 2),
    2: Encoding("Q4_0", 32, 18),
    3: Encoding("Q4_1", 32, 20),
    6: Encoding("Q5_0", 32, 22),
    7: Encoding("Q5_1", 32, 24),
    8: Encoding("Q8_0", 32, 34),
    10: Encoding("Q2_K", 256, 84),
    11: Encoding("Q3_K", 256, 110),
    12: Encoding("Q4_K", 256, 144),
    13: Encoding("Q5_K", 256, 176),
    14: Encoding("Q6_K", 256, 210),
    30: Encoding("BF16", 1, 2),
}
"""By the number of the type. The rest (importance-matrix and ternary ones among them) is refused by its number."""


@dataclass(frozen=True)
class Placed:
    """One tensor of the file.

    Attributes:
        encoding: how its numbers are kept.
        shape: as torch has it, slowest dimension first; the file has it the other way round.
        start: place of its first byte in the file.
        bytes: how many there are.
    """

    encoding: Encoding
    shape: tuple[int, ...]
    start: int
    bytes: int


@dataclass(frozen=True)
class Header:
    """What stands before the weights.

    Attributes:
        version: 2 or 3.
        metadata: by key; arrays of numbers are numpy arrays, arrays of strings lists.
        tensors: by name, in the file's order.
    """

    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Placed]


def read_header(path: Path) -> Header:
    """Read and check all but the weights.

    Raises:
        InputError: the file is missing, is no GGUF, or of a version or encoding that is not read here.
        IntegrityError: it is cut short or contradicts itself; the field or tensor is named.
    """
    with explained(str(path)), open(path, "rb") as handle:
        size = path.stat().st_size
        if handle.read(len(MAGIC)) != MAGIC:
            raise InputError(f"{path} is not a GGUF file: it does not begin with GGUF", hint=COPY_AGAIN)
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Cursor(path, content, size, len(MAGIC)).header()


@dataclass
class _Cursor:
    """A place in the file from which fields are read one after the other."""

    path: Path
    content: mmap.mmap
    size: int
    at: int

    def header(self) -> Header:
        """The whole header."""
        version = self._number("<I", "version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            why = "it is big-endian" if swapped else f"version is {version}"
            raise InputError(f"{self.path} is not a GGUF of version 2 or 3: {why}", hint="convert it with llama.cpp")
        tensor_count = self._count("tensor_count", least_bytes=24)
        metadata_count = self._count("metadata_kv_count", least_bytes=13)
        metadata = {}
        for number in range(metadata_count):
            key = self._text(f"key {number} of the metadata")
            if key in metadata:
                self._broken(f"the metadata has {key!r} twice")
            metadata[key] = self._value(key, self._number("<I", f"type of {key!r}"))
        return Header(version, metadata, self._tensors(tensor_count, self._alignment(metadata)))

    def _broken(self, what: str) -> NoReturn:
        raise IntegrityError(f"{self.path}: {what}", hint=COPY_AGAIN)

    def _take(self, count: int, what: str) -> bytes:
        if count > self.size - self.at:
            self._broken(f"the file ends within {what}")
        self.at += count
        return self.content[self.at - count : self.at]

    def _number(self, form: str, what: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form), what))[0]

    def _count(self, what: str, least_bytes: int) -> int:
        """A number of things that follow, each of which takes at least so many bytes."""
        count: int = self._number("<Q", what)
        if count * least_bytes > self.size - self.at:
            self._broken(f"{what} is {count}, more than the file has room for")
        return count

    def _text(self, what: str) -> str:
        raw = self._take(self._count(f"length of {what}", least_bytes=1), what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self._broken(f"{what} is not UTF-8")

    def _value(self, key: str, kind: int) -> Any:
        if kind in SCALARS:
            return self._number(SCALARS[kind], repr(key))
        if kind == BOOLEAN:
            return bool(self._number("<B", repr(key)))
        if kind == STRING:
            return self._text(repr(key))
        if kind == ARRAY:
            return self._array(key)
        return self._broken(f"{key!r} has the unknown type {kind}")

    def _array(self, key: str) -> Any:
        kind = self._number("<I", f"type of the items of {key!r}")
        if kind == STRING:
            count = self._count(f"length of {key!r}", least_bytes=8)
            return [self._text(f"item {number} of {key!r}") for number in range(count)]
        if kind not in SCALARS and kind != BOOLEAN:
            self._broken(f"the items of {key!r} have the type {kind}, which is no number and no text")
        dtype = np.dtype(np.bool_ if kind == BOOLEAN else SCALARS[kind])
        count = self._count(f"length of {key!r}", least_bytes=dtype.itemsize)
        return np.frombuffer(self._take(count * dtype.itemsize, repr(key)), dtype=dtype)

    def _alignment(self, metadata: Mapping[str, Any]) -> int:
        alignment = metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment % 8:
            self._broken(f"{ALIGNMENT_KEY} is {alignment!r}, not a multiple of 8")
        return alignment

    def _tensors(self, count: int, alignment: int) -> dict[str, Placed]:
        found: dict[str, tuple[Encoding, tuple[int, ...], int, int]] = {}
        for number in range(count):
            name = self._text(f"name of tensor {number}")
            if name in found:
                self._broken(f"tensor {name!r} is there twice")
            found[name] = self._place(name, alignment)
        base = self.at + -self.at % alignment  # the weights begin at the next multiple
        tensors = {name: Placed(kind, shape, base + at, held) for name, (kind, shape, at, held) in found.items()}
        self._check_room(tensors)
        return tensors

    def _place(self, name: str, alignment: int) -> tuple[Encoding, tuple[int, ...], int, int]:
        """(encoding, shape, offset, bytes) of one tensor."""
        dimensions = self._number("<I", f"number of dimensions of tensor {name!r}")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            self._broken(f"tensor {name!r} has {dimensions} dimensions, not 1 to {MOST_DIMENSIONS}")
        lengths = [self._number("<Q", f"shape of tensor {name!r}") for _ in range(dimensions)]
        if min(lengths) == 0 or math.prod(lengths) >= MOST_ITEMS:
            self._broken(f"tensor {name!r} has the shape {lengths}, which no tensor can have")
        number = self._number("<I", f"type of tensor {name!r}")
        if number not in ENCODINGS:
            known = ", ".join(encoding.name for encoding in ENCODINGS.values())
            raise InputError(
                f"{self.path}: tensor {name!r} has the type {number}, which is not read here", hint=f"known: {known}"
            )
        encoding = ENCODINGS[number]
        if lengths[0] % encoding.items:
            self._broken(f"tensor {name!r} has rows of {lengths[0]}, no multiple of {encoding.name}'s {encoding.items}")
        offset = self._number("<Q", f"offset of tensor {name!r}")
        if offset % alignment:
            self._broken(f"tensor {name!r} has the offset {offset}, no multiple of the alignment {alignment}")
        held = math.prod(lengths) // encoding.items * encoding.bytes
        return encoding, tuple(reversed(lengths)), offset, held

    def _check_room(self, tensors: Mapping[str, Placed]) -> None:
        end, before = 0, ""
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
            if tensor.start + tensor.bytes > self.size:
                self._broken(f"tensor {name!r} ends at byte {tensor.start + tensor.bytes}, the file at {self.size}")
            if tensor.start < end:
                self._broken(f"tensor {name!r} overlaps {before!r}")
            end, before = tensor.start + tensor.bytes, name
