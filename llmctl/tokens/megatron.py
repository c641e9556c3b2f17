"""Megatron's indexed dataset (`PREFIX.bin` and `PREFIX.idx`, version 1), out of token shards and into them.

The index, little-endian: `MMIDIDX\\0\\0`, u64 version, u8 type, u64 sequences, u64 length of the document list; then
i32 tokens of each sequence, i64 byte offset of each, and the i64 document list: 0, and after each document the number
of sequences so far (megatron/core/datasets/indexed_dataset.py). Here every document is one sequence.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.config.errors import InputError
from llmctl.data.tables import read_parquet
from llmctl.store.artifact import Artifact
from llmctl.store.files import explain, explained, publish
from llmctl.tokens.rows import mapped, ranges

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floats
CODES = {"uint16": 8, "uint32": 4}  # ours to theirs: ids are below 2^31
CHUNK_TOKENS = 1 << 22

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Indexed:
    """A dataset of theirs, mapped.

    Attributes:
        path: of the index.
        tokens: all of the `.bin`.
        length: int64 [sequences], tokens of each.
        offset: int64 [sequences], first token of each.
        first: int64 [documents + 1], first sequence of each document.
    """

    path: Path
    tokens: NDArray[Any]
    length: Ints
    offset: Ints
    first: Ints

    @property
    def documents(self) -> int:
        """How many documents there are."""
        return self.first.size - 1

    @property
    def document_tokens(self) -> Ints:
        """Tokens of each document."""
        before = np.concatenate(([0], np.cumsum(self.length)))
        return before[self.first[1:]] - before[self.first[:-1]]

    def chunks(self) -> Iterator[tuple[Ints, NDArray[Any]]]:
        """Whole documents, about `CHUNK_TOKENS` at a time: the tokens of each, and all their ids back to back."""
        sizes = self.document_tokens
        ends = np.cumsum(sizes)
        start = 0
        while start < self.documents:
            before = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + CHUNK_TOKENS, side="right")))
            some = slice(self.first[start], self.first[stop])
            yield sizes[start:stop], self.tokens[ranges(self.offset[some], self.length[some])]
            start = stop


def paths_of(prefix: str) -> tuple[Path, Path]:
    """The `.bin` and the `.idx` that a prefix, or the name of either, stands for."""
    base = prefix.removesuffix(".bin").removesuffix(".idx")
    return Path(f"{base}.bin"), Path(f"{base}.idx")


def open_indexed(prefix: str) -> Indexed:
    """Map a dataset and check that its parts agree.

    Raises:
        InputError: a file is missing, of another format or version, cut, or points outside the other.
    """
    binary, index = paths_of(prefix)
    try:
        content = np.fromfile(index, dtype=np.uint8).tobytes()
        size = binary.stat().st_size
    except OSError as error:
        raise explain(error, prefix) from error
    if len(content) < HEADER.size or not content.startswith(MAGIC):
        raise InputError(f"{index} is not a Megatron index", hint="give PREFIX of PREFIX.bin and PREFIX.idx")
    _, version, code, sequences, listed = HEADER.unpack_from(content)
    if version != VERSION or code not in TYPES:
        raise InputError(f"{index}: version {version}, type {code}", hint="version 1 with whole numbers can be read")
    expected = HEADER.size + 12 * sequences + 8 * listed
    if len(content) not in (expected, expected + sequences):  # the latter with a mode of each sequence
        raise InputError(f"{index} has {len(content)} bytes, not {expected}", hint="it was cut: copy it again")
    at = HEADER.size
    length = np.frombuffer(content, "<i4", sequences, at).astype(np.int64)
    pointer = np.frombuffer(content, "<i8", sequences, at + 4 * sequences)
    first = np.frombuffer(content, "<i8", listed, at + 12 * sequences).astype(np.int64)
    dtype = np.dtype(TYPES[code])
    whole = (pointer % dtype.itemsize == 0) & (pointer >= 0) & (length >= 0)
    if not (whole & (pointer + length * dtype.itemsize <= size)).all():
        raise InputError(f"{index} points outside {binary} of {size} bytes", hint="the two do not belong together")
    if not listed or first[0] != 0 or first[-1] != sequences or (np.diff(first) < 0).any():
        raise InputError(f"{index}: its documents do not cover its {sequences} sequences", hint="make it again")
    return Indexed(index, mapped(binary, dtype, size), length, pointer.astype(np.int64) // dtype.itemsize, first)


def write_indexed(artifact: Artifact, prefix: str) -> dict[str, Any]:
    """Write token shards as a dataset of theirs; the documents in their order, each with its `<s>` and `</s>`.

    Returns:
        The files, and how many documents and tokens they hold.

    Raises:
        InputError: the artifact is no token shards, or the files cannot be written there.
        IntegrityError: a shard is not as long as its table says.
    """
    if artifact.kind != "tokens":
        raise InputError(f"{artifact.ref} is a {artifact.kind} artifact", hint="give what llmctl tokenize made")
    binary, index = paths_of(prefix)
    ours = np.dtype(artifact.manifest.semantic["dtype"])
    code = CODES[ours.name]
    theirs = np.dtype(TYPES[code])
    lengths: list[Ints] = []
    with explained(str(index)):
        with publish(binary) as handle:
            for path in artifact.files(suffix=".parquet"):
                tables = [batch.column("tokens").to_numpy() for batch in read_parquet(path, ["tokens"])]
                sizes = np.concatenate([np.empty(0, np.int64), *tables]).astype(np.int64)
                shard = path.with_name(path.name.replace("documents-", "tokens-").replace(".parquet", ".bin"))
                tokens = mapped(shard, ours, int(sizes.sum()) * ours.itemsize)
                for start in range(0, tokens.size, CHUNK_TOKENS):
                    handle.write(tokens[start : start + CHUNK_TOKENS].astype(theirs).tobytes())
                lengths.append(sizes)
        length = np.concatenate(lengths)
        with publish(index) as handle:  # last: an index promises its .bin
            handle.write(HEADER.pack(MAGIC, VERSION, code, length.size, length.size + 1))
            handle.write(length.astype("<i4").tobytes())
            handle.write(((np.cumsum(length) - length) * theirs.itemsize).astype("<i8").tobytes())
            handle.write(np.arange(length.size + 1, dtype="<i8").tobytes())
    files = [str(binary), str(index)]
    return {"files": files, "documents": int(length.size), "tokens": int(length.sum()), "dtype": theirs.name}
