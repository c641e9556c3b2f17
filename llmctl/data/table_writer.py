"""How tables are written: parts that appear whole or not at all, and a fingerprint of their rows."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from llmctl.data.tables import BATCH_ROWS, conform
from llmctl.pipeline.job import FileFacts
from llmctl.store.files import explained, publish

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
        encoded = [_canonical(column) for column in batch.columns]
        for parts in zip(*encoded, strict=True):
            self._sum += xxhash.xxh3_128_intdigest(b"".join(parts))
        self.rows += batch.num_rows

    def merge(self, hexdigest: str, rows: int) -> None:
        """Add the rows of another part, whose fingerprint is `hexdigest`."""
        self._sum += int(hexdigest, 16)
        self.rows += rows

    def hexdigest(self) -> str:
        """32 hex digits."""
        return f"{self._sum % 2**128:032x}"


def _canonical(column: pa.Array) -> list[bytes]:
    values = column.to_pylist()
    if not pa.types.is_string(column.type):
        values = [json.dumps(value, sort_keys=True, ensure_ascii=False) for value in values]
    encoded = [b"" if value is None else value.encode() for value in values]
    return [len(value).to_bytes(8, "little") + value for value in encoded]


class TableWriter:
    """Writes batches to `part-00000.parquet`, `part-00001.parquet`, … each whole or not at all.

    Equal batches give equal bytes. Parts left by a killed run are removed first. As a context manager,
    an exception discards the part that is open, and a writer that was never used writes nothing.

    Args:
        directory: where the parts go.
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
            for stale in directory.glob(f"{prefix}-*.parquet*"):
                stale.unlink()

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
