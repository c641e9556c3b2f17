"""How tables are written: parts that appear whole or not at all, and a fingerprint of their rows."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from llmctl.data.tables import BATCH_ROWS, conform
from llmctl.pipeline.job import FileFacts
from llmctl.store.files import explained, publish

BYTES = pa.large_binary()
GROUP_ROWS = 8192
GROUP_BYTES = 16 << 20
PART_BYTES = 64 << 20


class RowsDigest:
    """An order-independent fingerprint of rows: the sum mod 2^128 of xxh3_128 of each row.

    A row's canonical bytes are its columns in schema order, each as a 64-bit length and then UTF-8 text
    (strings) or JSON with sorted keys (everything else). Order, batch and file boundaries do not matter;
    a row that occurs twice counts twice.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._sum = 0

    def update(self, batch: pa.RecordBatch) -> None:
        """Add the rows of `batch`."""
        if batch.num_rows:
            columns = [part for column in batch.columns for part in _canonical(column)]
            rows = pc.binary_join_element_wise(*columns, pa.scalar(b"", BYTES))
            data = memoryview(rows.buffers()[2] or b"")
            ends = np.frombuffer(rows.buffers()[1], dtype=np.int64)[rows.offset : rows.offset + len(rows) + 1].tolist()
            for start, end in itertools.pairwise(ends):
                self._sum += xxhash.xxh3_128_intdigest(data[start:end])
        self.rows += batch.num_rows

    def merge(self, hexdigest: str, rows: int) -> None:
        """Add the rows of another part, whose fingerprint is `hexdigest`."""
        self._sum += int(hexdigest, 16)
        self.rows += rows

    def hexdigest(self) -> str:
        """32 hex digits."""
        return f"{self._sum % 2**128:032x}"


def _canonical(column: pa.Array) -> tuple[pa.Array, pa.Array]:
    """(lengths, values) of a column's canonical bytes, by row."""
    if not pa.types.is_string(column.type):
        texts = (json.dumps(value, sort_keys=True, ensure_ascii=False) for value in column.to_pylist())
        column = pa.array(texts, pa.string())
    values = column.cast(BYTES).fill_null(b"")
    lengths = np.asarray(pc.binary_length(values), dtype="<i8")
    places = np.arange(0, 8 * len(lengths) + 1, 8)
    return pa.Array.from_buffers(BYTES, len(lengths), [None, pa.py_buffer(places), pa.py_buffer(lengths)]), values


class TableWriter:
    """Writes batches to `part-00000.parquet`, `part-00001.parquet`, … each whole or not at all.

    Equal batches give equal bytes. As a context manager, an exception discards the part that is open, and a writer
    that was never used writes nothing.

    Args:
        directory: where the parts go; it holds none yet, as a run's directory is empty at its start.
        schema: columns of every batch; other columns are an error.
        part_bytes: a new part starts once this much (uncompressed, in Arrow's memory) is in one; None: never.
        prefix: what the file names start with.
    """

    def __init__(
        self, directory: Path, schema: pa.Schema, part_bytes: int | None = PART_BYTES, prefix: str = "part"
    ) -> None:
        self.directory = directory
        self.schema = schema
        self.part_bytes = part_bytes
        self.prefix = prefix
        self.digest = RowsDigest()
        self._facts: dict[str, FileFacts] = {}
        self._group: list[pa.RecordBatch] = []
        self._group_rows = self._group_size = 0
        self._part: contextlib.ExitStack | None = None
        self._writer: pq.ParquetWriter | None = None
        self._part_rows = self._part_size = 0
        with explained(str(directory)):
            directory.mkdir(parents=True, exist_ok=True)

    def write(self, batch: pa.RecordBatch) -> None:
        """Append the rows of `batch`. Of its columns, those of the schema are written."""
        batch = conform(batch, self.schema)
        if not batch.num_rows:
            return
        self.digest.update(batch)
        self._group.append(batch)
        self._group_rows += batch.num_rows
        self._group_size += batch.nbytes
        if self._group_size >= GROUP_BYTES or self._group_rows >= GROUP_ROWS:
            self._write_group()

    def write_rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows given as dictionaries."""
        present = pa.schema([field for field in self.schema if any(field.name in row for row in rows)])
        for start in range(0, len(rows), BATCH_ROWS):
            self.write(pa.RecordBatch.from_pylist(list(rows[start : start + BATCH_ROWS]), schema=present))

    def close(self) -> dict[str, FileFacts]:
        """Finish the last part; facts of all parts by file name. At least one part, maybe empty, is written."""
        if self._group or not self._facts:
            self._write_group()
        self._close_part()
        return dict(self._facts)

    def _write_group(self) -> None:
        with explained(str(self.directory)):
            writer = self._writer or self._open_part()
            table = pa.Table.from_batches(self._group, schema=self.schema)
            writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._part_rows += table.num_rows
        self._part_size += self._group_size
        self._group, self._group_rows, self._group_size = [], 0, 0
        if self.part_bytes is not None and self._part_size >= self.part_bytes:
            self._close_part()

    def _open_part(self) -> pq.ParquetWriter:
        part = contextlib.ExitStack()
        handle = part.enter_context(publish(self.directory / self._name()))
        writer: pq.ParquetWriter = part.enter_context(pq.ParquetWriter(handle, self.schema, compression="zstd"))
        self._part, self._writer = part, writer
        self._part_rows = self._part_size = 0
        return writer

    def _close_part(self) -> None:
        if self._part is None:
            return
        part, self._part, self._writer = self._part, None, None
        with explained(str(self.directory)):
            part.close()
        self._facts[self._name()] = FileFacts(rows=self._part_rows)

    def _name(self) -> str:
        return f"{self.prefix}-{len(self._facts):05d}.parquet"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            if self._group or self._part is not None:
                self.close()
        elif self._part is not None:
            part, self._part, self._writer = self._part, None, None
            part.__exit__(kind, error, trace)
