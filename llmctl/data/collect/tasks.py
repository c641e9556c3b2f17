"""One worker's share of `collect`: some pieces in, a few parts of documents out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from llmctl.config.collect import CollectConfig
from llmctl.data.collect.document import Document, Tally
from llmctl.data.collect.sources import Piece
from llmctl.data.collect.spdx import is_allowed
from llmctl.data.parts import Report, read_report
from llmctl.data.table_writer import TableWriter
from llmctl.data.tables import BATCH_ROWS, DOCUMENTS

GROUP_BYTES = 64 << 20  # of the disk, that one task reads
BATCH_BYTES = 8 << 20
PART_BYTES = 40 << 20  # and one row group of the writer, which makes 64 MiB
IDS_FILE = "ids.npy"
PROGRESS_FILE = "progress"
PROGRESS_EVERY_S = 1.0


@dataclass(frozen=True)
class Task:
    """Pieces that are read one after the other."""

    pieces: tuple[Piece, ...]
    config: CollectConfig

    @property
    def size(self) -> int:
        """Bytes to read."""
        return sum(piece.size for piece in self.pieces)


def group(pieces: Sequence[Piece], config: CollectConfig) -> list[Task]:
    """Tasks of pieces in order, of at most `GROUP_BYTES`; a piece whose size is not known is one alone."""
    groups: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        weight = piece.size or GROUP_BYTES
        if not groups or weight > room:
            groups.append([])
            room = GROUP_BYTES
        groups[-1].append(piece)
        room -= weight
    return [Task(tuple(members), config) for members in groups]


def id_hash(document_id: str) -> int:
    """64 bits that stand for an id where ids are compared."""
    return xxhash.xxh3_64_intdigest(document_id.encode())


class Shelf:
    """Takes documents, or counts why not, and writes them in batches.

    Args:
        writer: where they go.
        tally: where what is left out is counted.
        config: bounds, sample and licences.
        room: how many documents may still be taken; None for any number.
    """

    def __init__(self, writer: TableWriter, tally: Tally, config: CollectConfig, room: int | None) -> None:
        self.documents = self.bytes = self.nul_removed = 0
        self.licenses: set[str] = set()
        self.hashes: list[int] = []
        self._room = room
        self._writer = writer
        self._tally = tally
        self._config = config
        self._allowed = frozenset(name.lower() for name in config.license_allow)
        self._rows: list[dict[str, str]] = []
        self._waiting_bytes = 0

    @property
    def full(self) -> bool:
        """Whether no further document may be taken."""
        return self._room is not None and self.documents >= self._room

    def add(self, document: Document) -> None:
        """Take one document, or count why not. NUL characters, which no tokenizer can hold, are taken out."""
        row = {name: getattr(document, name) for name in DOCUMENTS.names}
        if "\0" in row["text"]:
            row["text"] = row["text"].replace("\0", "")
            self.nul_removed += 1
        try:
            size = len(row["text"].encode())
            for value in row.values():
                value.encode()
        except UnicodeEncodeError:
            self._tally.drop("damaged", f"{document.id!a} holds a lone surrogate")
            return
        reason = self._reason(row, size)
        if reason:
            self._tally.drop(reason)
            return
        self.documents += 1
        self.bytes += size
        if document.license:
            self.licenses.add(document.license)
        self.hashes.append(id_hash(row["id"]))
        self._rows.append(row)
        self._waiting_bytes += size
        if len(self._rows) >= BATCH_ROWS or self._waiting_bytes >= BATCH_BYTES:
            self.flush()

    def _reason(self, row: dict[str, str], size: int) -> str:
        """Why a document is not taken, or ""."""
        config = self._config
        if not row["text"].strip():
            return "empty"
        if size > config.max_document_bytes:
            return "too_large"
        if self._allowed and not is_allowed(row["license"], self._allowed):
            return "license"
        if config.sample < 1.0 and sample_place(row["id"], config.seed) >= config.sample:
            return "sample"
        return ""

    def flush(self) -> None:
        """Write what waits."""
        if self._rows:
            self._writer.write_rows(self._rows)
        self._rows, self._waiting_bytes = [], 0


def sample_place(document_id: str, seed: int) -> float:
    """A number in [0, 1) that an id and a seed determine; a sample takes those below its fraction."""
    return xxhash.xxh3_64_intdigest(document_id.encode(), seed=seed) / 2**64


def collect_part(task: Task, directory: Path) -> Report:
    """Read a task's pieces into `part-*.parquet`, and the hashes of the ids, in order, into `ids.npy`."""
    tally = Tally()
    config = task.config
    before = 0 if config.limit is None else _taken_before(directory)
    with TableWriter(directory, DOCUMENTS, part_bytes=PART_BYTES) as writer:
        shelf = Shelf(writer, tally, config, None if config.limit is None else config.limit - before)
        for document in _with_progress(task, tally, directory, shelf):
            shelf.add(document)
            if shelf.full:
                break
        shelf.flush()
        files = writer.close()
    np.save(directory / IDS_FILE, np.array(shelf.hashes, dtype=np.uint64))
    dropped = Counter({f"dropped.{reason}": count for reason, count in tally.dropped.items()})
    figures: dict[str, Any] = {
        "counts": {
            "documents": shelf.documents,
            "in": shelf.documents + dropped.total(),
            "bytes": shelf.bytes,
            "nul_removed": shelf.nul_removed,
            **dropped,
            **{f"skipped.{reason}": count for reason, count in tally.skipped.items()},
        },
        "examples": tally.examples,
        "notes": tally.notes,
        "licenses": sorted(shelf.licenses),
        "rows_digest": writer.digest.hexdigest(),
        "taken": before + shelf.documents,
        "read": task.size,
    }
    return Report(files, figures)


def _taken_before(directory: Path) -> int:
    """Documents that the tasks before this one took: with a limit they are done one after the other."""
    number = int(directory.name.partition(".")[0])
    if not number:
        return 0
    taken: int = read_report(directory.with_name(f"{number - 1:05d}")).figures["taken"]
    return taken


def _with_progress(task: Task, tally: Tally, directory: Path, shelf: Shelf) -> Iterator[Document]:
    """The documents of all pieces; about every second, the bytes and documents so far go into a file."""
    done, due = 0, time.monotonic() + PROGRESS_EVERY_S
    for piece in task.pieces:
        for document in piece.documents(task.config, tally):
            yield document
            if time.monotonic() >= due:
                (directory / PROGRESS_FILE).write_text(f"{done + tally.position()} {shelf.documents}\n")
                due = time.monotonic() + PROGRESS_EVERY_S
        done += piece.size
        tally.position = int
