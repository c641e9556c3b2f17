"""Packed rows on disk, read through memory maps (schema llmctl.rows/1).

For each split: `<split>.bin` ids [rows, seq_len]; `<split>.rows.bin` int64 [rows + 1], the first slice of each row;
`<split>.slices.bin` int32 [slices, 3], document, start within it, length; `<split>.documents.parquet`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.config.errors import InputError, IntegrityError
from llmctl.store.artifact import Artifact
from llmctl.tokens.batch import IGNORE, PADDING_DOCUMENT, Batch

SCHEMA = "llmctl.rows/1"
SPLITS = ("train", "heldout")


class Rows:
    """One split of a rows artifact. Memory-mapped: opening reads nothing, a batch reads its own pages.

    Attributes:
        count: rows in the split.
        seq_len: tokens in a row.
        pad_id: id that fills the end of a row.
    """

    def __init__(
        self,
        tokens: NDArray[Any],  # [rows, seq_len]
        first: NDArray[np.int64],  # [rows + 1]
        slices: NDArray[np.int32],  # [slices, 3]
        pad_id: int,
    ) -> None:
        self.count, self.seq_len = int(tokens.shape[0]), int(tokens.shape[1])
        self.pad_id = pad_id
        self._tokens = tokens
        self._first = first
        self._slices = slices

    @classmethod
    def open(cls, artifact: Artifact, split: str) -> Rows:
        """Map the files of `split` (`train` or `heldout`).

        Raises:
            InputError: the artifact holds no rows, or not this split.
            IntegrityError: a file is not as long as the manifest says, or the files disagree.
        """
        if artifact.manifest.schema_ != SCHEMA:
            raise InputError(f"{artifact.ref} is {artifact.manifest.schema_}, not {SCHEMA}", hint="give packed rows")
        if split not in SPLITS:
            raise InputError(f"{artifact.ref} has no split {split!r}", hint=f"known: {', '.join(SPLITS)}")
        semantic = artifact.manifest.semantic
        rows, seq_len = int(semantic["rows"][split]), int(semantic["seq_len"])
        tokens = _listed(artifact, f"{split}.bin", np.dtype(semantic["dtype"]))
        first = _listed(artifact, f"{split}.rows.bin", np.dtype(np.int64))
        slices = _listed(artifact, f"{split}.slices.bin", np.dtype(np.int32))
        expected = (rows * seq_len, rows + 1, 3 * int(first[-1]) if first.size else 0)
        if (tokens.size, first.size, slices.size) != expected:
            raise IntegrityError(
                f"the {split} files of {artifact.ref} do not fit together: {rows} rows of {seq_len} tokens expected",
                hint=f"run llmctl verify {artifact.ref}, then pack again",
            )
        return cls(tokens.reshape(rows, seq_len), first, slices.reshape(-1, 3), int(semantic["pad_id"]))

    def slices_of(self, row: int) -> NDArray[np.int32]:
        """What one row is made of: int32 [slices, 3], document, start within it, length."""
        return np.array(self._slices[self._first[row] : self._first[row + 1]])

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """The rows at `indices`, in that order; [B, T] each."""
        indices = np.asarray(indices, dtype=np.int64)
        shape = (indices.size, self.seq_len)
        tokens = self._tokens[indices].astype(np.int64)
        begins, used = self._begins(indices)
        places = np.arange(self.seq_len, dtype=np.int32)
        documents = np.cumsum(begins, axis=1, dtype=np.int32)
        documents -= 1
        opened = np.maximum.accumulate(np.where(begins, places, 0), axis=1)  # where each place's slice begins
        positions = np.subtract(places, opened, dtype=np.int64)
        padding = places >= used[:, None]
        documents[padding] = PADDING_DOCUMENT
        positions[padding] = 0
        labels = np.full(shape, IGNORE, dtype=np.int64)
        follows = ~(begins[:, 1:] | padding[:, 1:])  # the next place continues the same slice
        np.copyto(labels[:, :-1], tokens[:, 1:], where=follows)
        return Batch(tokens, positions, documents, labels)

    def _begins(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Where slices begin, bool [B, T], and how many places of each row are used, int64 [B]."""
        first, last = self._first[indices], self._first[indices + 1]
        counts = last - first
        total = np.cumsum(counts)
        row = np.repeat(np.arange(indices.size), counts)
        number = np.arange(int(total[-1]) if total.size else 0) + np.repeat(first - (total - counts), counts)
        lengths = self._slices[number, 2].astype(np.int64)
        ends = np.cumsum(lengths)
        of_row = np.concatenate(([0], ends))
        row_start = of_row[total - counts]
        begins = np.zeros((indices.size, self.seq_len), dtype=np.bool_)
        begins[row, ends - lengths - row_start[row]] = True
        return begins, of_row[total] - row_start


def mapped(path: Path, dtype: np.dtype[Any], expected_bytes: int) -> NDArray[Any]:
    """A file as a read-only array, flat; `IntegrityError` unless it is exactly `expected_bytes` long.

    (A memory map of a truncated file opens without complaint, only shorter.)
    """
    try:
        actual = path.stat().st_size
    except OSError as error:
        raise IntegrityError(
            f"cannot read {path}: {error.strerror}", hint="run llmctl verify, then make it again"
        ) from None
    if actual != expected_bytes:
        raise IntegrityError(
            f"{path} has {actual} bytes, not {expected_bytes}",
            hint="it was cut or changed; run llmctl verify, then make it again",
        )
    if not actual:
        return np.empty(0, dtype=dtype)  # an empty file cannot be mapped
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))


def _listed(artifact: Artifact, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    path = artifact.file(name)
    entry = next(entry for entry in artifact.manifest.files if entry.path == f"data/{name}")
    return mapped(path, dtype, entry.bytes)
