"""The last passes of `mix`: texts from the order of the sources into the order of the mixture, part by part.

Each part of a source is read once and its rows are laid down by the output part that they go to; then each
output part is put together from what lies there for it. No process holds more than a part of either side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc

from llmctl.data.mix.survey import Ints
from llmctl.data.parts import Report
from llmctl.data.split import original
from llmctl.data.table_writer import TableWriter
from llmctl.data.tables import BATCH_ROWS, Part, conform, documents_schema, read_part, text_bytes
from llmctl.store.files import publish

POSITION = pa.field("position", pa.int64(), nullable=False)
SCATTER_FILE = "rows.arrow"


@dataclass(frozen=True)
class ScatterTask:
    """One part of a source, and where its documents go. Arrays are by row of the mixture, in its order.

    Attributes:
        part: where the documents are.
        row: which document of the part.
        position: its place in the mixture.
        mark: the number that its id is marked with; 0 where it stays as it is.
        target: the output part.
        extra: columns of the mixture beyond those of every document; null where this source has them not.
    """

    part: Part
    row: Ints
    position: Ints
    mark: Ints
    target: Ints
    extra: tuple[str, ...] = ()


def scatter_part(task: ScatterTask, directory: Path) -> Report:
    """Write one batch for each output part that takes documents from this part."""
    schema = documents_schema(task.extra)
    table = pa.Table.from_batches([conform(batch, schema) for batch in read_part(task.part)], schema=schema)
    targets, starts = np.unique(task.target, return_index=True)
    ends = np.append(starts[1:], len(task.target))
    with publish(directory / SCATTER_FILE) as handle, ipc.new_file(handle, schema.append(POSITION)) as writer:
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            rows = table.take(pa.array(task.row[start:end]))
            marks = task.mark[start:end].tolist()
            ids = [marked(name, mark) for name, mark in zip(rows.column("id").to_pylist(), marks, strict=True)]
            rows = rows.set_column(0, schema.field("id"), pa.array(ids, pa.string()))
            rows = rows.append_column(POSITION, pa.array(task.position[start:end]))
            writer.write_batch(rows.combine_chunks().to_batches()[0])
    return Report(figures={"targets": targets.tolist()})


def marked(document_id: str, mark: int) -> str:
    """The id with another mark: `a~3` from `a` or from `a~2`; 0 leaves it as it is."""
    return f"{original(document_id)}~{mark}" if mark else document_id


@dataclass(frozen=True)
class WriteTask:
    """One output part: its split, and what it is made of: (name of a directory in `scattered`, batch number).

    `extra`: as in `ScatterTask`.
    """

    split: str
    scattered: Path
    pieces: tuple[tuple[str, int], ...]
    extra: tuple[str, ...] = ()


def write_part(task: WriteTask, directory: Path) -> Report:
    """Put the pieces of an output part together in the order of the mixture."""
    batches = []
    for name, number in task.pieces:
        with pa.memory_map(str(task.scattered / name / SCATTER_FILE)) as source:
            batches.append(ipc.open_file(source).get_batch(number))
    schema = documents_schema(task.extra)
    table = pa.Table.from_batches(batches, schema=schema.append(POSITION))
    order = pc.sort_indices(table.column("position"))
    size = 0
    with TableWriter(directory, schema, part_bytes=None) as writer:
        for start in range(0, table.num_rows, BATCH_ROWS):
            rows = table.take(order[start : start + BATCH_ROWS]).drop_columns(["position"])
            batch = rows.combine_chunks().to_batches()[0]
            size += text_bytes(batch)
            writer.write(batch)
        files = {name: replace(facts, split=task.split) for name, facts in writer.close().items()}
    figures = {"documents": table.num_rows, "bytes": size, "rows_digest": writer.digest.hexdigest()}
    return Report(files, figures)
