"""Packed rows on disk, read through memory maps (schema llmctl.rows/1).

For each split: `<split>.bin` ids [rows, seq_len]; `<split>.rows.bin` int64 [rows + 1], the first slice of each row;
`<split>.slices.bin` int32 [slices, 3], document, start within it, length; `<split>.documents.parquet`. Rows of
several sources lie one source after the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.config.errors import InputError, IntegrityError
from llmctl.store.artifact import Artifact
from llmctl.tokens.batch import IGNORE, PADDING_DOCUMENT, Batch
from llmctl.tokens.mixture import Mixture
from llmctl.tokens.order import rows_of_step

SCHEMA = "llmctl.rows/1"
SPLITS = ("train", "heldout")
CACHED_TOKENS = 1 << 16  # described at a time, so that what is in between stays in the processor's cache


class Rows:
    """One split of a rows artifact. Memory-mapped: opening reads nothing, a batch reads its own pages.

    Attributes:
        count: rows in the split.
        seq_len: tokens in a row.
        pad_id: id that fills the end of a row.
        first: int64 [rows + 1], first slice of each row.
        slices: int32 [slices, 3], document, start within it, length.
        mixture: in which shares training takes the rows of several sources; None where there is one.
    """

    def __init__(
        self,
        tokens: NDArray[Any],  # [rows, seq_len]
        first: NDArray[np.int64],  # [rows + 1]
        slices: NDArray[np.int32],  # [slices, 3]
        pad_id: int,
        mixture: Mixture | None = None,
    ) -> None:
        self.count, self.seq_len = int(tokens.shape[0]), int(tokens.shape[1])
        self.pad_id = pad_id
        self.mixture = mixture
        self._tokens = tokens
        self.first = first
        self.slices = slices

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
        mixture = Mixture.of(semantic["mixture"]) if split == "train" and "mixture" in semantic else None
        return cls(tokens.reshape(rows, seq_len), first, slices.reshape(-1, 3), int(semantic["pad_id"]), mixture)

    def rows_of_step(self, seed: int, step: int, batch_rows: int) -> NDArray[np.int64]:
        """Indices of the rows that step `step` (0-based) trains on; int64 [batch_rows].

        Without a mixture: `llmctl.tokens.order.rows_of_step`.
        """
        if self.mixture is None:
            return rows_of_step(seed, step, batch_rows, self.count)
        return self.mixture.rows_at(seed, np.arange(batch_rows, dtype=np.int64) + step * batch_rows)

    def slices_of(self, row: int) -> NDArray[np.int32]:
        """What one row is made of: int32 [slices, 3], document, start within it, length."""
        return np.array(self.slices[self.first[row] : self.first[row + 1]])

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """The rows at `indices`, in that order; [B, T] each."""
        indices = np.asarray(indices, dtype=np.int64)
        shape = (indices.size, self.seq_len)
        tokens, positions, labels = (np.empty(shape, dtype=np.int64) for _ in range(3))
        whole = Batch(tokens, positions, np.empty(shape, dtype=np.int32), labels)
        at_once = max(1, CACHED_TOKENS // self.seq_len)
        for start in range(0, indices.size, at_once):
            part = slice(start, start + at_once)
            self._read(indices[part], whole.slice(part))
        return whole

    def _read(self, indices: NDArray[np.int64], out: Batch) -> None:
        """Fill `out` with the rows at `indices`."""
        out.tokens[:] = self._tokens[indices]
        tokens, positions, labels = (array.reshape(-1) for array in (out.tokens, out.positions, out.labels))
        lengths, numbers = self._runs(indices)
        ends = np.cumsum(lengths)
        out.documents.reshape(-1)[:] = np.repeat(numbers, lengths)
        np.subtract(np.arange(tokens.size), np.repeat(ends - lengths, lengths), out=positions)
        labels[:-1] = tokens[1:]
        labels[ends[lengths > 0] - 1] = IGNORE  # nothing follows the last token of a slice
        gaps = numbers == PADDING_DOCUMENT
        padding = ranges(ends[gaps] - lengths[gaps], lengths[gaps])
        positions[padding] = 0
        labels[padding] = IGNORE

    def _runs(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """What the rows at `indices` are made of: lengths of slices, and their numbers within their row.

        The padding of each row is one more slice after its last, numbered `PADDING_DOCUMENT`; it may be empty.
        """
        first = self.first[indices]
        counts = self.first[indices + 1] - first
        total = np.cumsum(counts)
        found = ranges(first, counts)
        of_slices = self.slices[found, 2].astype(np.int64)
        used = np.concatenate(([0], np.cumsum(of_slices)))
        gap = self.seq_len - (used[total] - used[total - counts])
        numbers = (found - np.repeat(first, counts)).astype(np.int32)
        return np.insert(of_slices, total, gap), np.insert(numbers, total, np.int32(PADDING_DOCUMENT))


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """`start, start + 1, …` of each of several ranges, one after the other; int64 [sum of lengths]."""
    ends = np.cumsum(lengths)
    places: NDArray[np.int64] = np.repeat(starts - (ends - lengths), lengths)
    places += np.arange(places.size)
    return places


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
