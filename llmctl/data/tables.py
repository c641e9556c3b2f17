"""Tables of documents, chats, preferences and prompts: their columns, and how they are read."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmctl.config.errors import InputError
from llmctl.data.forms import canonical
from llmctl.data.lines import plain_suffix, read_objects, readable
from llmctl.store.artifact import FileInput, Input

STRING = pa.string()
MESSAGE = pa.struct([pa.field("role", STRING, nullable=False), pa.field("content", STRING, nullable=False)])

# lang: the programming language of a code file (`python`), or the language found in a text (`en`), or "".
# time: when the source says that the page was fetched or written (ISO 8601), or "".
DOCUMENT_COLUMNS = ("id", "text", "source", "url", "license", "lang", "time")
DOCUMENTS = pa.schema([pa.field(name, STRING, nullable=False) for name in DOCUMENT_COLUMNS])
# What a stage may have found out about a document, beyond those columns: null where it was not looked at.
EXTRA_COLUMNS = pa.schema(
    [
        pa.field("lang_score", pa.float64()),  # 0 to 1: how certain `lang` is
        pa.field("quality", pa.float64()),  # 0 to 1: by a quality classifier
        pa.field("perplexity", pa.float64()),  # by an n-gram model; from 1
        pa.field("pii", STRING),  # `email:2 phone:1`
    ],
)
MESSAGES = pa.list_(pa.field("element", MESSAGE, nullable=False))
# document: the id on which the held-out rule acted; "" where the chat was made from no document.
CHATS = pa.schema(
    [
        pa.field("id", STRING, nullable=False),
        pa.field("messages", MESSAGES, nullable=False),
        pa.field("source", STRING, nullable=False),
        pa.field("document", STRING, nullable=False),
    ],
)
# chosen, rejected: what comes after the prompt. Of an answer that was judged by itself, the other one is empty.
# margin: by how much the one is better, in the units of a reward; null where nobody said so.
PREFERENCES = pa.schema(
    [
        pa.field("id", STRING, nullable=False),
        pa.field("prompt", MESSAGES, nullable=False),
        pa.field("chosen", MESSAGES, nullable=False),
        pa.field("rejected", MESSAGES, nullable=False),
        pa.field("margin", pa.float64()),
        pa.field("source", STRING, nullable=False),
        pa.field("document", STRING, nullable=False),
    ],
)
# An answer by its steps, each of which is labelled right or wrong.
STEPWISE = pa.schema(
    [
        pa.field("id", STRING, nullable=False),
        pa.field("prompt", MESSAGES, nullable=False),
        pa.field("completions", pa.list_(pa.field("element", STRING, nullable=False)), nullable=False),
        pa.field("labels", pa.list_(pa.field("element", pa.bool_(), nullable=False)), nullable=False),
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

SCHEMAS = {"documents": DOCUMENTS, "chats": CHATS, "preferences": PREFERENCES, "stepwise": STEPWISE, "prompts": PROMPTS}
SCHEMA_NAMES = {kind: f"llmctl.{kind}/1" for kind in SCHEMAS}
FILLED_WITH_BLANK = {"source", "url", "license", "lang", "time", "document", "question"}  # in batches
MAY_BE_LEFT_OUT = FILLED_WITH_BLANK | {"id", "margin"}  # in plain files
MANY_FORMS = (
    "chats",
    "preferences",
    "stepwise",
)  # kinds of which a plain file may hold other columns than the schema's

NOT_OF_TYPE = (pa.ArrowException, TypeError, ValueError, OverflowError)  # what Arrow raises for a wrong cell

BATCH_ROWS = 1024

SPLIT_PREFIXES = {"train": "part", "heldout": "heldout"}
"""What the file names of a split start with; where an artifact has no held-out side, all its rows are `train`."""


def documents_schema(extra: Iterable[str] = ()) -> pa.Schema:
    """`DOCUMENTS`, and after them those of `EXTRA_COLUMNS` that are named, in their own order."""
    wanted = set(extra)
    return pa.schema([*DOCUMENTS, *(field for field in EXTRA_COLUMNS if field.name in wanted)])


def extra_columns(given: Input) -> list[str]:
    """The `EXTRA_COLUMNS` that the parts of a documents artifact carry. A plain file carries none.

    A stage that keeps documents as they are writes `documents_schema(extra_columns(input))`; one that does not
    know them selects the columns that it reads.
    """
    first = next(iter(parts_of(given)), None)
    if not isinstance(first, Path):
        return []
    with readable(first), _parquet_damage(first):
        names = pq.read_schema(first).names
    return [name for name in EXTRA_COLUMNS.names if name in names]


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """`batch` with exactly the columns of `schema`.

    Those of `FILLED_WITH_BLANK` may be absent and are then "", those that may be null are null then.

    Raises:
        InputError: another one is absent, so the batch is of no artifact that llmctl wrote.
    """
    columns = []
    for field in schema:
        if field.name not in batch.schema.names and field.nullable:
            columns.append(pa.nulls(batch.num_rows, field.type))
        elif field.name not in batch.schema.names and field.name in FILLED_WITH_BLANK:
            columns.append(pa.repeat("", batch.num_rows).cast(field.type))
        elif field.name not in batch.schema.names:
            hint = "`llmctl verify` of the input names the file that was changed"
            raise InputError(
                f"rows without the column {field.name!r}; they have: {', '.join(batch.schema.names)}", hint=hint
            )
        else:
            columns.append(batch.column(field.name).cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def text_bytes(batch: pa.RecordBatch) -> int:
    """UTF-8 bytes of the column `text`."""
    return pc.sum(pc.binary_length(batch.column("text"))).as_py() or 0


Part = Path | FileInput
"""What one worker reads: a Parquet part of an artifact, or a plain file."""


def parts_of(given: Input, split: str = "train") -> list[Part]:
    """The Parquet files of one split of an artifact in order: `part-*` (train) or `heldout-*`.

    A plain file is one part, and all of it is the split `train`.
    """
    if isinstance(given, FileInput):
        return [given] if split == "train" else []
    prefix = f"{SPLIT_PREFIXES[split]}-"
    return [path for path in given.files(suffix=".parquet") if path.name.startswith(prefix)]


def read_batches(given: Input, columns: Sequence[str] | None = None, split: str = "train") -> Iterator[pa.RecordBatch]:
    """`read_part` of every part of the split, in order."""
    for part in parts_of(given, split):
        yield from read_part(part, columns)


def read_rows(given: Input, split: str = "train") -> Iterator[dict[str, Any]]:
    """Every row of the split as a dictionary, in order."""
    for batch in read_batches(given, split=split):
        yield from batch.to_pylist()


def read_part(part: Part, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Batches of at most 1,024 rows of an artifact's part, or of a .jsonl[.gz|.zst] or .parquet file.

    Args:
        part: a part, whose rows are known to be sound, or a plain file, whose rows are checked.
        columns: the columns to read, in this order; all of them where left out.

    Raises:
        InputError: naming the file, and the line of a JSON Lines file, that is damaged or lacks a column.
    """
    if isinstance(part, Path):
        yield from read_parquet(part, columns)
        return
    suffix = plain_suffix(part.path)
    if suffix == ".parquet":
        batches = _plain_parquet_batches(part)
    elif suffix in {".jsonl", ".ndjson", ".json"}:
        batches = _jsonl_batches(part)
    else:
        raise InputError(f"{part.path}: unknown format", hint="give a .jsonl, .jsonl.gz, .jsonl.zst or .parquet file")
    for batch in batches:
        yield batch if columns is None else batch.select(list(columns))


def read_parquet(
    path: Path, columns: Sequence[str] | None = None, batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Batches of at most `batch_rows` rows of one Parquet file.

    Raises:
        InputError: naming the file that is damaged, lacks a column, or holds text that is not UTF-8.
    """
    with readable(path), _parquet_damage(path), open(path, "rb") as handle:
        table = pq.ParquetFile(handle)
        names = table.schema_arrow.names
        missing = [name for name in columns or () if name not in names]
        if missing:
            raise InputError(f"{path} has no column {missing[0]!r}", hint=f"it has: {', '.join(names)}")
        first = 1
        for batch in table.iter_batches(batch_size=batch_rows, columns=None if columns is None else list(columns)):
            _check_cells(batch, path, first)
            first += batch.num_rows
            yield batch if columns is None else batch.select(list(columns))


def _check_cells(batch: pa.RecordBatch, path: Path, first: int) -> None:
    """Refuse what Arrow reads without a look at it: a string is whatever bytes the file has there."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        for place, name in itertools.product(range(batch.num_rows), batch.schema.names):
            try:
                batch.column(name)[place : place + 1].validate(full=True)
            except pa.ArrowInvalid as error:
                reason = "not UTF-8" if "UTF8" in str(error) else str(error)
                raise InputError(
                    f"{path} row {first + place}: {name!r} is {reason}", hint="write the file again, its text as UTF-8"
                ) from error
        raise


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
        rows = [canonical(given.kind, row, f"{given.path} line {number}") for number, row in numbered]
        columns = {name: [row.get(name) for row in rows] for name in names}
        yield _complete(given, columns, numbers, "line")


def _plain_parquet_batches(given: FileInput) -> Iterator[pa.RecordBatch]:
    names = SCHEMAS[given.kind].names
    read = 0
    for batch in read_parquet(given.path):
        numbers = range(read + 1, read + 1 + batch.num_rows)
        if given.kind in MANY_FORMS:
            rows = [
                canonical(given.kind, row, f"{given.path} row {number}")
                for number, row in zip(numbers, batch.to_pylist(), strict=True)
            ]
            columns = {name: [row.get(name) for row in rows] for name in names}
        else:
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


def _origin(given: FileInput) -> str:
    """What names a plain file in its rows: the start of its digest, since what it is called is in no action key."""
    return given.digest.removeprefix("sha256:")[:12]


def _filled(given: FileInput, name: str, cells: list[Any], numbers: Sequence[int]) -> list[Any]:
    if name == "id":
        own = (f"{_origin(given)}:{number}" for number in numbers)
        return [
            new if cell is None else str(cell) if isinstance(cell, int) else cell
            for cell, new in zip(cells, own, strict=True)
        ]
    if name not in FILLED_WITH_BLANK:
        return cells
    blank = _origin(given) if name == "source" else ""
    return [blank if cell is None else cell for cell in cells]


def _array(cells: list[Any], field: pa.Field) -> pa.Array:
    """`cells` as the field's type; one of `NOT_OF_TYPE` where one is absent or of another type."""
    for cell in cells:
        if cell is None:
            if field.nullable:
                continue
            raise TypeError("got nothing")
        if pa.types.is_list(field.type) and not isinstance(cell, list):  # Arrow would take a string for a list
            raise TypeError(f"got {type(cell).__name__}")
    return pa.array(cells, type=field.type)


def _check(cell: Any, field: pa.Field, given: FileInput, where: str) -> None:
    if cell is None and not field.nullable:
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
