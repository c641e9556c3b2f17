"""The first pass: a few numbers for each document, by which duplicates find one another without their texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmctl.config.errors import InputError
from llmctl.data.dedup.kernel import normalise, shingles
from llmctl.data.dedup.minhash import Banding
from llmctl.data.dedup.units import Edited, Reading
from llmctl.data.parts import Report
from llmctl.data.workers import in_order
from llmctl.store.files import publish

KEYS_FILE = "keys.parquet"
EXACT = ("exact_low", "exact_high")  # the two halves of a document's 128-bit key
GROUP_ROWS = 1 << 16
RULES = ("longest", "first")  # other values of `keep` name a column


def band_names(bands: int) -> list[str]:
    """The columns of the band keys."""
    return [f"band{number:03d}" for number in range(bands)]


def key_schema(bands: int) -> pa.Schema:
    """Columns of `keys.parquet`, one row for each document.

    part, row: where the document lies. shingled: whether it has words, so that its band keys mean something.
    length: characters. value: of the column that `keep` names. emptied: whether no unit of it is left.
    """
    return pa.schema(
        [
            ("part", pa.int32()), ("row", pa.int32()), ("id", pa.string()), ("source", pa.string()),
            ("length", pa.int64()), ("value", pa.float64()), ("emptied", pa.bool_()), ("shingled", pa.bool_()),
            *((name, pa.uint64()) for name in (*EXACT, *band_names(bands))),
        ]
    )  # fmt: skip


@dataclass(frozen=True)
class KeyTask:
    """One part of which the keys are to be computed.

    Attributes:
        number: of the part.
        reading: how to read it.
        keep: as in the configuration.
        ngram_words: words per shingle.
        banding: None where near duplicates are not asked for.
        threads: batches worked on at a time.
    """

    number: int
    reading: Reading
    keep: str
    ngram_words: int
    banding: Banding | None
    threads: int = 1


def compute_keys(task: KeyTask, directory: Path) -> Report:
    """Write the keys of one part."""
    bands = task.banding.bands if task.banding else 0
    schema = key_schema(bands)
    columns = ["id", "text", "source", *(() if task.keep in RULES else (task.keep,))]
    rows = 0
    with (
        publish(directory / KEYS_FILE) as handle,
        pq.ParquetWriter(handle, schema, compression="none", use_dictionary=["source"]) as writer,
    ):
        waiting: list[pa.RecordBatch] = []
        edited = task.reading.batches(columns)
        for batch in in_order(lambda one: _keys_of(one, task, schema), edited, task.threads):
            place = schema.get_field_index("row")
            numbers = pa.array(np.arange(rows, rows + batch.num_rows, dtype=np.int32))
            waiting.append(batch.set_column(place, schema.field(place), numbers))
            rows += batch.num_rows
            if sum(batch.num_rows for batch in waiting) >= GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(waiting, schema=schema))
                waiting = []
        writer.write_table(pa.Table.from_batches(waiting, schema=schema))
    return Report(figures={"documents": rows})


def _keys_of(edited: Edited, task: KeyTask, schema: pa.Schema) -> pa.RecordBatch:
    """The keys of one batch; `row` counts from 0 in each."""
    batch, emptied = edited.batch, edited.emptied
    texts = normalise(batch.column("text"))
    exact = texts.exact_keys()
    columns: dict[str, Any] = {
        "part": np.full(batch.num_rows, task.number, dtype=np.int32),
        "row": np.arange(batch.num_rows, dtype=np.int32),
        "id": batch.column("id"),
        "source": batch.column("source"),
        "length": pc.utf8_length(batch.column("text")).cast(pa.int64()),
        "value": _values(batch, task.keep),
        "emptied": emptied,
        "shingled": np.zeros(batch.num_rows, dtype=bool),
        EXACT[0]: np.ascontiguousarray(exact[:, 0]),
        EXACT[1]: np.ascontiguousarray(exact[:, 1]),
    }
    if task.banding is not None:
        found = shingles(texts, task.ngram_words)
        columns["shingled"] = (found.lengths() > 0) & ~emptied
        columns |= dict(zip(band_names(task.banding.bands), task.banding.keys(found), strict=True))
    arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _values(batch: pa.RecordBatch, keep: str) -> pa.Array:
    """The column by which to choose, as numbers; the lowest where a document has none."""
    if keep in RULES:
        return pa.nulls(batch.num_rows, pa.float64()).fill_null(0.0)
    try:
        values = batch.column(keep).cast(pa.float64()).fill_null(-np.inf)
    except pa.ArrowInvalid as error:
        raise InputError(f"the column {keep!r} holds no numbers: {error}", hint="keep=longest needs none") from error
    return pc.if_else(pc.is_nan(values), -np.inf, values)


class Keys:
    """The keys of all documents, numbered through in the order of the corpus; columns are read when asked for.

    Args:
        files: the `keys.parquet` of all parts, in order.
        counts: documents in each.
        keep: as in the configuration.
    """

    def __init__(self, files: Sequence[Path], counts: Sequence[int], keep: str) -> None:
        self.files = list(files)
        self.starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        self.keep = keep
        self._opened = [pq.ParquetFile(path, memory_map=True) for path in files]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def table(self, *columns: str) -> pa.Table:
        """These columns of every document."""
        return pa.concat_tables([file.read(list(columns)) for file in self._opened])

    def column(self, name: str) -> npt.NDArray[Any]:
        """One column without strings."""
        values: npt.NDArray[Any] = self.table(name).column(name).to_numpy()
        return values

    def best_first(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """`rows` (distinct, ascending) by the rule of `keep`, the one that stays first."""
        if self.keep == "first" or not len(rows):
            return rows
        chosen = self.table("value", "length", "id").take(pa.array(rows))
        order = [("value", "descending"), ("length", "descending"), ("id", "ascending")]
        places = pc.sort_indices(chosen.append_column("row", pa.array(rows)), [*order, ("row", "ascending")])
        best: npt.NDArray[np.int64] = rows[places.to_numpy()]
        return best
