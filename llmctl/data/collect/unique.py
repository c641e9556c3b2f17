"""Makes ids unique over all tasks: the first owner keeps its id, later ones get `~2`, `~3` and so on.

Eight bytes an id are compared; only where two agree is a table read again. What comes out depends on the order of
the documents alone, not on how they were divided among tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llmctl.data.collect.tasks import IDS_FILE, PART_BYTES, id_hash
from llmctl.data.parts import Report, read_report
from llmctl.data.table_writer import TableWriter
from llmctl.data.tables import DOCUMENTS, read_parquet

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Renaming:
    """A finished task, and the ids that change in it, by row."""

    directory: Path
    ids: dict[int, str] = field(default_factory=dict)


def renamings(directories: Sequence[Path]) -> list[Renaming] | None:
    """What has to change in each task, in order; None where every id is there once."""
    columns = [np.load(directory / IDS_FILE) for directory in directories]
    hashes = np.concatenate(columns) if columns else np.empty(0, dtype=np.uint64)
    rows = repeated(hashes)
    if not len(rows):
        return None
    starts = np.cumsum([0, *map(len, columns)])
    naming = Naming(hashes)
    plans = []
    for directory, first, end in zip(directories, starts[:-1], starts[1:], strict=True):
        own = rows[np.searchsorted(rows, first) : np.searchsorted(rows, end)] - first
        ids = _ids(directory) if len(own) else []
        plans.append(Renaming(directory, {int(row): naming(ids[row]) for row in own}))
    return plans


def repeated(hashes: Hashes) -> npt.NDArray[np.intp]:
    """The rows whose hash occurs in an earlier row, ascending."""
    order = np.argsort(hashes, kind="stable")
    again = hashes[order[1:]] == hashes[order[:-1]]
    return np.sort(order[1:][again])


class Naming:
    """New ids for documents whose id is taken.

    Args:
        hashes: of all ids; a new one is none of them.
    """

    def __init__(self, hashes: Hashes) -> None:
        self._taken = np.unique(hashes)
        self._given: set[int] = set()
        self._numbers: dict[str, int] = {}

    def __call__(self, wanted: str) -> str:
        """The first free `wanted~N`, N from 2."""
        number = self._numbers.get(wanted, 1)
        while True:
            number += 1
            name = f"{wanted}~{number}"
            key = id_hash(name)
            place = np.searchsorted(self._taken, np.uint64(key))
            if key not in self._given and (place == len(self._taken) or int(self._taken[place]) != key):
                self._given.add(key)
                self._numbers[wanted] = number
                return name


def _parts(directory: Path) -> list[Path]:
    return [directory / name for name, facts in sorted(read_report(directory).files.items()) if facts.rows]


def _ids(directory: Path) -> list[str]:
    return [
        name
        for part in _parts(directory)
        for batch in read_parquet(part, ["id"])
        for name in batch.column("id").to_pylist()
    ]


def rename_part(task: Renaming, directory: Path) -> Report:
    """A task's parts with its new ids; they are linked as they are where none changes."""
    report = read_report(task.directory)
    if not task.ids:
        for part in _parts(task.directory):
            (directory / part.name).hardlink_to(part)
        return report
    row = 0
    with TableWriter(directory, DOCUMENTS, part_bytes=PART_BYTES) as writer:
        for part in _parts(task.directory):
            for batch in read_parquet(part):
                ids = batch.column("id").to_pylist()
                ids = [task.ids.get(row + place, name) for place, name in enumerate(ids)]
                columns = [pa.array(ids, pa.string()), *batch.columns[1:]]
                writer.write(pa.RecordBatch.from_arrays(columns, schema=DOCUMENTS))
                row += batch.num_rows
        files = writer.close()
    return Report(files, {**report.figures, "rows_digest": writer.digest.hexdigest()})
