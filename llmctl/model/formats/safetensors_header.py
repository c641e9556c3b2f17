"""The header of a safetensors file, with everything checked that a reader relies on.

A file is the length of the header (8 bytes, little-endian), the header (a JSON object of tensors by name, each with
dtype, shape and place) and the tensors' bytes, which cover the rest without holes or overlaps
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmctl.config.errors import IntegrityError
from llmctl.model.formats.pickles import refuse_pickle
from llmctl.store.files import explained

LENGTH_BYTES = 8
MOST_ITEMS = 1 << 62
LARGEST_HEADER_BYTES = 100_000_000  # the bound of the reference implementation
METADATA = "__metadata__"
COPY_AGAIN = "copy or download the file again"
ITEM_BITS: Final = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
    "F4": 4,
}


@dataclass(frozen=True)
class Stored:
    """One tensor of a file.

    Attributes:
        dtype: as the format names it, such as `BF16`.
        shape: lengths of its dimensions.
        start, end: its bytes, counted from the end of the header.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name.

    Raises:
        InputError: the file is missing, may not be read, or is a pickle by another name.
        IntegrityError: the header is damaged, or promises what the file does not hold; the tensor is named.
    """
    with explained(str(path)), open(path, "rb") as handle:
        size = path.stat().st_size
        refuse_pickle(path, handle.read(LENGTH_BYTES))
        handle.seek(0)
        length = int.from_bytes(handle.read(LENGTH_BYTES), "little")
        if size < LENGTH_BYTES:
            raise IntegrityError(f"{path} has {size} bytes, too few for a safetensors header", hint=COPY_AGAIN)
        if length > LARGEST_HEADER_BYTES:
            raise IntegrityError(
                f"{path}: the header's length is {length}, more than {LARGEST_HEADER_BYTES} bytes", hint=COPY_AGAIN
            )
        if length > size - LENGTH_BYTES:
            raise IntegrityError(
                f"{path}: the header's length is {length}, but only {size - LENGTH_BYTES} bytes follow", hint=COPY_AGAIN
            )
        content = handle.read(length)
    entries = _parsed(path, content)
    tensors = {name: _entry(path, name, value) for name, value in entries.items()}
    _check_cover(path, tensors, size - LENGTH_BYTES - length)
    return tensors


def _parsed(path: Path, content: bytes) -> dict[str, Any]:
    """The header's entries by name, metadata left out."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise IntegrityError(f"{path}: the header names {name!r} twice", hint=COPY_AGAIN)
            found[name] = value
        return found

    try:
        header = json.loads(content.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise IntegrityError(f"{path}: the header is not JSON: {error}", hint=COPY_AGAIN) from None
    if not isinstance(header, dict):
        raise IntegrityError(f"{path}: the header is no JSON object", hint=COPY_AGAIN)
    metadata = header.pop(METADATA, {})
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise IntegrityError(f"{path}: {METADATA} of the header is no map of strings", hint=COPY_AGAIN)
    return header


def _entry(path: Path, name: str, value: Any) -> Stored:
    """One tensor, its dtype and shape checked against its number of bytes."""

    def broken(what: str) -> IntegrityError:
        return IntegrityError(f"{path}: tensor {name!r} {what}", hint=COPY_AGAIN)

    if not isinstance(value, dict):
        raise broken("has no entry of dtype, shape and data_offsets")
    dtype: Any = value.get("dtype")
    shape: Any = value.get("shape")
    offsets: Any = value.get("data_offsets")
    if not (isinstance(dtype, str) and dtype in ITEM_BITS):
        raise broken(f"has the unknown dtype {dtype!r}")
    if not _are_sizes(shape) or math.prod(max(length, 1) for length in shape) >= MOST_ITEMS:
        raise broken(f"has the shape {_shown(shape)}, which no tensor can have")
    if not (_are_sizes(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise broken(f"has the data_offsets {_shown(offsets)}, which are no beginning and end")
    bits = math.prod(shape) * ITEM_BITS[dtype]
    held = offsets[1] - offsets[0]
    if held * 8 != bits:
        raise broken(f"has {held} bytes, but {dtype} of shape {_shown(shape)} takes {bits // 8}")
    return Stored(dtype, tuple(shape), offsets[0], offsets[1])


def _are_sizes(value: Any) -> bool:
    """Whether a JSON value is a list of integers from 0 on."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _shown(value: Any) -> str:
    """A JSON value short enough for a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"


def _check_cover(path: Path, tensors: Mapping[str, Stored], size: int) -> None:
    """Tensors lie side by side from the first byte of data to the last."""
    at, before = 0, "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end, item[0])):
        if tensor.end > size:
            raise IntegrityError(
                f"{path}: tensor {name!r} ends at byte {tensor.end} of the data, but there are {size}", hint=COPY_AGAIN
            )
        if tensor.start < at:
            raise IntegrityError(f"{path}: tensor {name!r} overlaps {before!r}", hint=COPY_AGAIN)
        if tensor.start > at:
            raise IntegrityError(
                f"{path}: {tensor.start - at} bytes before tensor {name!r} are of none", hint=COPY_AGAIN
            )
        at, before = tensor.end, name
    if at != size:
        raise IntegrityError(f"{path}: the last {size - at} bytes are of no tensor", hint=COPY_AGAIN)
