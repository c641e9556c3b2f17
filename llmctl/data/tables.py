"""Tables of documents, chats and prompts: their columns, and how they are written, read and fingerprinted."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from llmctl.config.errors import InputError
from llmctl.data.lines import plain_suffix, read_objects, readable
from llmctl.pipeline.job import FileFacts
from llmctl.store.artifact import FileInput, Input
from llmctl.store.files import explained, publish

STRING = pa.string()
MESSAGE = pa.struct([pa.field("role", STRING, nullable=False), pa.field("content", STRING, nullable=False)])

# lang: the programming language of a code file (`python`), otherwise "".
DOCUMENT_COLUMNS = ("id", "text", "source", "url", "license", "lang")
DOCUMENTS = pa.schema([pa.field(name, STRING, nullable=False) for name in DOCUMENT_COLUMNS])
# document: the id on which the held-out rule acted; "" where the chat was made from no document.
CHATS = pa.schema(
    [
        pa.field("id", STRING, nullable=False),
        pa.field("messages", pa.list_(pa.field("element", MESSAGE, nullable=False)), nullable=False),
        pa.field("source", STRING, nullable=False),
        pa.field("document", STRING, nullable=False),
    ],
)
# question: the bare question, as a chat asks it; "" where the prompt is all there is.
PROMPTS = pa.schema(
    [
        pa.field("id", STRING, nullable=False),
        pa.field("prompt", STRING, nullable=False),
        pa.field("choices", pa.list_(pa.field("element", STRING, nullable=False)), nullable=False),
        pa.field("answer", pa.int32(), nullable=False),
        pa.field("source", STRING, nullable=False),
        pa.field("question", STRING, nullable=False),
    ],
)

SCHEMAS = {"documents": DOCUMENTS, "chats": CHATS, "prompts": PROMPTS}
SCHEMA_NAMES = {kind: f"llmctl.{kind}/1" for kind in SCHEMAS}
FILLED_WITH_BLANK = {"source", "url", "license", "lang", "document", "question"}  # in batches
MAY_BE_LEFT_OUT = FILLED_WITH_BLANK | {"id"}  # in plain files

NOT_OF_TYPE = (pa.ArrowException, TypeError, ValueError, OverflowError)  # what Arrow raises for a wrong cell

BATCH_ROWS = 1024
GROUP_ROWS = 8192
GROUP_BYTES = 16 << 20


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

    def hexdigest(self) -> str:
        """32 hex digits."""
        return f"{self._sum % 2**128:032x}"


def _canonical(column: pa.Array) -> list[bytes]:
    values = column.to_pylist()
    if not pa.types.is_string(column.type):
        values = [json.dumps(value, sort_keys=True, ensure_ascii=False) for value in values]
    encoded = [b"" if value is None else value.encode() for value in values]
    return [len(value).to_bytes(8, "little") + value for value in encoded]


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """`batch` with exactly the columns of `schema`; those of `FILLED_WITH_BLANK` may be absent and are then ""."""
    columns = []
    for field in schema:
        if field.name not in batch.schema.names and field.name in FILLED_WITH_BLANK:
            columns.append(pa.repeat("", batch.num_rows).cast(field.type))
        else:
            columns.append(batch.column(field.name).cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def text_bytes(batch: pa.RecordBatch) -> int:
    """UTF-8 bytes of the column `text`."""
    return pc.sum(pc.binary_length(batch.column("text"))).as_py() or 0


class TableWriter:
    """Writes batches to `part-00000.parquet`, `part-00001.parquet`, … each whole or not at all.

    Equal batches give equal bytes. Parts left by a killed run are removed first. As a context manager,
    an exception discards the part that is open, and a writer that was never used writes nothing.

    Args:
        directory: where the parts go.
        schema: columns of every batch; other columns are an error.
        part_bytes: a new part starts once this much (uncompressed, in Arrow's memory) is in one.
        prefix: what the file names start with.
    """

    def __init__(self, directory: Path, schema: pa.Schema, part_bytes: int = 64 << 20, prefix: str = "part") -> None:
        self.directory = directory
        self.schema = schema
        self.part_bytes = part_bytes
        self.prefix = prefix
        self.digest = RowsDigest()
        self._facts: dict[str, FileFacts] = {}
        self._group: list[pa.RecordBatch] = []
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
        if _size(self._group) >= GROUP_BYTES or sum(b.num_rows for b in self._group) >= GROUP_ROWS:
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
        self._part_size += _size(self._group)
        self._group = []
        if self._part_size >= self.part_bytes:
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


def _size(batches: Sequence[pa.RecordBatch]) -> int:
    return sum(batch.nbytes for batch in batches)


def read_batches(given: Input, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Batches of at most 1,024 rows of an artifact's parts, or of a .jsonl[.gz|.zst] or .parquet file.

    Args:
        given: an artifact (its `part-*.parquet` files in order) or a plain file of the same kind of rows.
        columns: the columns to read, in this order; all of them where left out.

    Raises:
        InputError: naming the file, and the line of a JSON Lines file, that is damaged or lacks a column.
    """
    if not isinstance(given, FileInput):
        for path in given.files(suffix=".parquet"):
            if path.name.startswith("part-"):
                yield from read_parquet(path, columns)
        return
    suffix = plain_suffix(given.path)
    if suffix == ".parquet":
        batches = _plain_parquet_batches(given)
    elif suffix in {".jsonl", ".ndjson", ".json"}:
        batches = _jsonl_batches(given)
    else:
        raise InputError(f"{given.path}: unknown format", hint="give a .jsonl, .jsonl.gz, .jsonl.zst or .parquet file")
    for batch in batches:
        yield batch if columns is None else batch.select(list(columns))


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Batches of one Parquet file, with its damage named."""
    with readable(path), _parquet_damage(path), open(path, "rb") as handle:
        table = pq.ParquetFile(handle)
        names = table.schema_arrow.names
        missing = [name for name in columns or () if name not in names]
        if missing:
            raise InputError(f"{path} has no column {missing[0]!r}", hint=f"it has: {', '.join(names)}")
        for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=None if columns is None else list(columns)):
            yield batch if columns is None else batch.select(list(columns))


@contextlib.contextmanager
def _parquet_damage(path: Path) -> Iterator[None]:
    """Damage, which Arrow reports as ArrowInvalid or as an OSError without a number, as an `InputError`."""
    try:
        yield
    except pa.ArrowInvalid as error:
        reason = str(error)
    except OSError as error:
        if error.errno is not None:
            raise
        reason = str(error)
    else:
        return
    first = reason.splitlines()[0] if reason else "unreadable"
    raise InputError(f"{path} is truncated or not Parquet: {first}", hint="copy or write it again")


def _jsonl_batches(given: FileInput) -> Iterator[pa.RecordBatch]:
    names = SCHEMAS[given.kind].names
    lines = read_objects(given.path)
    while numbered := list(itertools.islice(lines, BATCH_ROWS)):
        numbers = [number for number, _ in numbered]
        columns = {name: [value.get(name) for _, value in numbered] for name in names}
        yield _complete(given, columns, numbers, "line")


def _plain_parquet_batches(given: FileInput) -> Iterator[pa.RecordBatch]:
    names = SCHEMAS[given.kind].names
    read = 0
    for batch in read_parquet(given.path):
        numbers = range(read + 1, read + 1 + batch.num_rows)
        columns = {name: batch.column(name).to_pylist() for name in names if name in batch.schema.names}
        yield _complete(given, columns, numbers, "row")
        read += batch.num_rows


def _complete(given: FileInput, columns: dict[str, list[Any]], numbers: Sequence[int], unit: str) -> pa.RecordBatch:
    """The columns of the kind's schema, checked; what may be left out is filled in where absent.

    Arrow checks a column at a time; only where it refuses one is each cell looked at, to name the first bad row.
    """
    schema = SCHEMAS[given.kind]
    filled = [_filled(given, field.name, columns.get(field.name, [None] * len(numbers)), numbers) for field in schema]
    try:
        return pa.RecordBatch.from_arrays(
            [_array(cells, field) for cells, field in zip(filled, schema, strict=True)], schema=schema
        )
    except NOT_OF_TYPE:
        for number, *row in zip(numbers, *filled, strict=True):
            for cell, field in zip(row, schema, strict=True):
                _check(cell, field, given, f"{given.path} {unit} {number}")
        raise


def _filled(given: FileInput, name: str, cells: list[Any], numbers: Sequence[int]) -> list[Any]:
    if name == "id":
        own = (f"{given.path.name}:{number}" for number in numbers)
        return [
            new if cell is None else str(cell) if isinstance(cell, int) else cell
            for cell, new in zip(cells, own, strict=True)
        ]
    if name not in MAY_BE_LEFT_OUT:
        return cells
    blank = given.path.name if name == "source" else ""
    return [blank if cell is None else cell for cell in cells]


def _array(cells: list[Any], field: pa.Field) -> pa.Array:
    """`cells` as the field's type; one of `NOT_OF_TYPE` where one is absent or of another type."""
    for cell in cells:
        if cell is None:
            raise TypeError("got nothing")
        if pa.types.is_list(field.type) and not isinstance(cell, list):  # Arrow would take a string for a list
            raise TypeError(f"got {type(cell).__name__}")
    return pa.array(cells, type=field.type)


def _check(cell: Any, field: pa.Field, given: FileInput, where: str) -> None:
    if cell is None:
        needed = _needed(SCHEMAS[given.kind])
        raise InputError(f"{where}: no {field.name!r}", hint=f"a row of {given.kind} needs {needed}")
    try:
        _array([cell], field)
    except NOT_OF_TYPE as error:
        raise InputError(f"{where}: {field.name!r} must be {_described(field)}", hint=str(error)) from error


def _needed(schema: pa.Schema) -> str:
    return ", ".join(name for name in schema.names if name not in MAY_BE_LEFT_OUT)


def _described(field: pa.Field) -> str:
    known = {
        "messages": "a list of {role, content}",
        "choices": "a list of strings",
        "answer": "the index of the right choice",
    }
    return known.get(field.name, "a string")
