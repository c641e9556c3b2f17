"""Files of rows: JSON Lines, CSV and Parquet. A row is a document with the columns that it has."""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmctl.config.errors import InputError
from llmctl.data.collect.document import ERRORS, Document, UnreadableError
from llmctl.data.collect.entry import Entry
from llmctl.data.collect.formats import plain_name
from llmctl.data.collect.streams import FREE_BYTES, damage
from llmctl.data.collect.text import decode
from llmctl.data.lines import parse_object

TEXT_COLUMNS = ("text", "content")
TIME_COLUMNS = ("time", "date", "timestamp", "created")
ROW_COLUMNS = (*TEXT_COLUMNS, *TIME_COLUMNS, "id", "url", "source", "license", "lang", "language")
LONGEST = 2  # line over document: JSON may write a character of three bytes as six
PARQUET_BATCH_ROWS = 64
IN_MEMORY_BYTES = 64 << 20  # a Parquet file within an archive


def read_jsonl(entry: Entry) -> Iterator[Document]:
    """One document of each line that is not blank."""
    for number, offset, line in entry.lines(LONGEST * entry.reading.config.max_document_bytes):
        where = f"{entry.where} line {number}"
        with _counted(entry):
            if line is None:
                raise UnreadableError("too_large", f"{where} is too long")
            text = decode(line, entry.where, offset).strip()
            if text:
                yield document_of(_object(text, where), number, where, entry)


def read_csv(entry: Entry) -> Iterator[Document]:
    """One document of each row below the heading; `.tsv` is separated by tabs."""
    delimiter = "\t" if plain_name(entry.name).endswith(".tsv") else ","
    most = LONGEST * entry.reading.config.max_document_bytes
    csv.field_size_limit(most)
    rows = _csv_rows(csv.reader(_csv_lines(entry, most), delimiter=delimiter, strict=True), entry)
    names = [cell.strip() for cell in next(rows, [])]
    if not set(names) & set(TEXT_COLUMNS):
        raise UnreadableError("damaged", f"{entry.where} has no column 'text'", f"it has: {', '.join(names)[:200]}")
    for number, cells in enumerate(rows, start=1):
        where = f"{entry.where} row {number}"
        with _counted(entry):
            if len(cells) != len(names):
                raise UnreadableError("damaged", f"{where} has {len(cells)} cells, not {len(names)}", "mend the row")
            yield document_of(dict(zip(names, cells, strict=True)), number, where, entry)


def _csv_lines(entry: Entry, most: int) -> Iterator[str]:
    for number, offset, line in entry.lines(most):
        if line is None:
            raise UnreadableError("too_large", f"{entry.where} line {number} is too long")
        yield decode(line, entry.where, offset)


def _csv_rows(reader: Any, entry: Entry) -> Iterator[list[str]]:
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            hint = "quote cells that hold quotes, separators or line breaks"
            raise UnreadableError("damaged", f"{entry.where} line {reader.line_num}: {error}", hint) from error
        if cells is None:
            return
        if cells:
            yield cells


def read_parquet(entry: Entry) -> Iterator[Document]:
    """One document of each row. Row groups that unfold beyond the ratio are not read."""
    what = "truncated or not Parquet"
    handle = entry.seekable(IN_MEMORY_BYTES)
    with damage(entry.where, what):
        metadata = pq.read_metadata(handle)
        schema = metadata.schema.to_arrow_schema()
    names = [name for name in schema.names if name in ROW_COLUMNS]
    texts = [name for name in names if name in TEXT_COLUMNS]
    if not texts:
        has = f"it has: {', '.join(schema.names)[:200]}"
        raise UnreadableError("damaged", f"{entry.where} has no column 'text'", has)
    _check_groups(metadata, entry)
    repeated = [name for name in texts if pa.types.is_string(schema.field(name).type)]  # read as they are stored
    with damage(entry.where, what):
        table = pq.ParquetFile(handle, metadata=metadata, read_dictionary=repeated)
    batches = table.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=names)
    number = 0
    while True:
        with damage(entry.where, what):
            batch = next(batches, None)
        if batch is None:
            return
        for index in range(batch.num_rows):
            number += 1
            where = f"{entry.where} row {number}"
            with _counted(entry), damage(where):
                yield document_of(_cells(batch, index, where), number, where, entry)


def _cells(batch: pa.RecordBatch, index: int, where: str) -> dict[str, Any]:
    """One row; Arrow looks at the bytes of a string only here."""
    try:
        return {name: batch.column(name)[index].as_py() for name in batch.schema.names}
    except UnicodeDecodeError as error:
        raise UnreadableError("encoding", f"{where} is not UTF-8", "write the file again, its text as UTF-8") from error


def _check_groups(metadata: Any, entry: Entry) -> None:
    """Refuse a file whose columns say of themselves that they are bombs."""
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for column in range(row_group.num_columns):
            chunk = row_group.column(column)
            out, stored = chunk.total_uncompressed_size, chunk.total_compressed_size
            if out > FREE_BYTES and out > entry.reading.config.max_ratio * stored:
                raise UnreadableError("decompression_bomb", f"{entry.where} unfolds to {out} bytes from {stored}")


@contextlib.contextmanager
def _counted(entry: Entry) -> Iterator[None]:
    """A row that gives no document is counted, unless it is damaged and the user named this very file."""
    try:
        yield
    except UnreadableError as fault:
        if entry.strict and fault.reason in ERRORS:
            raise
        entry.reading.tally.drop(fault.reason, fault.what)


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        return parse_object(text, where)
    except InputError as error:
        raise UnreadableError("damaged", error.what, error.hint) from error


def document_of(row: Mapping[str, Any], number: int, where: str, entry: Entry) -> Document:
    """The document that a row is.

    Raises:
        UnreadableError: it has no text, or a column is no valid string.
    """
    reading = entry.reading
    text = next((row[column] for column in TEXT_COLUMNS if row.get(column) is not None), None)
    if text is None:
        raise UnreadableError("damaged", f"{where}: no text", "each row needs a string `text` (or `content`)")
    row_id = row.get("id")
    return Document(
        id=f"{entry.name}:{number}" if row_id in (None, "") else _string(str(row_id), "id", where),
        text=_string(text, "text", where),
        source=_string(row.get("source") or reading.source, "source", where),
        url=_string(row.get("url") or reading.url, "url", where),
        license=_string(row.get("license") or reading.license, "license", where),
        lang=_loose(row.get("lang") or row.get("language")),
        time=next((found for name in TIME_COLUMNS if (found := _loose(row.get(name)))), reading.time),
    )


def _string(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        what = f"{where}: {column} must be a string, got {type(value).__name__}"
        raise UnreadableError("damaged", what, "mend the row or leave it out")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        what = f"{where}: {column} holds a lone surrogate at character {error.start}"
        raise UnreadableError("damaged", what, "it is no valid Unicode text") from error
    return value


def _loose(value: Any) -> str:
    """A column that is nice to have: a time as ISO 8601, a valid string as it is, anything else as nothing."""
    if isinstance(value, dt.datetime | dt.date):
        return value.isoformat()
    if not isinstance(value, str) or not value.isprintable() or len(value) > 100:
        return ""
    return value
