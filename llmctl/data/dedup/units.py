"""Paragraphs or lines that stood earlier in the corpus: found over all parts, then cut out of the texts.

A unit counts as seen before where an earlier one is equal up to letter case and white space (64-bit hashes:
among 10^8 units two different ones share a hash with a probability of 3 in 10,000). Blank units are no units.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llmctl.config.dedup import Unit
from llmctl.data.dedup.kernel import Hashes, normalise
from llmctl.data.parts import Report
from llmctl.data.tables import Part, read_part, text_bytes
from llmctl.store.files import publish

PARAGRAPH_BREAK = re.compile(r"\n\s*\n")
HASHES_FILE = "units.npy"
UNITS_AT_ONCE = 1 << 23  # sorted at a time: 64 MB of hashes and as much of places
SHIFTS = np.uint64(64)


def split(text: str, unit: Unit) -> list[str]:
    """The lines of `text`, or its paragraphs, blank ones included."""
    return text.split("\n") if unit == "line" else PARAGRAPH_BREAK.split(text)


def joined(units: Sequence[str], unit: Unit) -> str:
    """What remains of a text."""
    return ("\n" if unit == "line" else "\n\n").join(units)


@dataclass(frozen=True)
class UnitTask:
    """One part whose units are to be hashed."""

    part: Part
    unit: Unit


def hash_units(task: UnitTask, directory: Path) -> Report:
    """`units.npy`: uint64, one hash for each unit of the part that is not blank, in order."""
    found: list[Hashes] = []
    for batch in read_part(task.part, ["text"]):
        units = [
            unit for text in batch.column("text").to_pylist() for unit in split(text, task.unit) if not unit.isspace()
        ]
        found.append(normalise(pa.array([unit for unit in units if unit], pa.string())).short_keys())
    hashes = np.concatenate(found) if found else np.empty(0, dtype=np.uint64)
    with publish(directory / HASHES_FILE) as handle:
        np.save(handle, hashes)
    return Report(figures={"units": len(hashes)})


def mark_seen(files: Sequence[Path], counts: Sequence[int], out: Path) -> list[Path]:
    """Write for each part which of its units stood earlier in the corpus; bool [units], one .npy file each.

    Memory: 17 bytes for each of `UNITS_AT_ONCE`, whatever the corpus; the rest is mapped files.

    Args:
        files: the `units.npy` of all parts, in the order of the corpus.
        counts: how many units each holds.
        out: directory of the marks.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{number:05d}.npy" for number in range(len(files))]
    marks = [
        np.lib.format.open_memmap(path, mode="w+", dtype=np.bool_, shape=(count,))
        for path, count in zip(paths, counts, strict=True)
    ]
    starts = np.concatenate(([0], np.cumsum(counts)))
    bits = max(0, int(np.ceil(np.log2(max(1, starts[-1]) / UNITS_AT_ONCE))))
    for share in range(1 << bits):  # hashes are spread evenly, so each share holds at most about UNITS_AT_ONCE
        chosen = [_of_share(np.load(path, mmap_mode="r"), share, bits) for path in files]
        places = np.concatenate([own + start for (own, _), start in zip(chosen, starts[:-1], strict=True)])
        hashes = np.concatenate([own for _, own in chosen])
        order = np.argsort(hashes, kind="stable")
        again = places[order[1:][hashes[order[1:]] == hashes[order[:-1]]]]
        again.sort()
        for mark, start, end in zip(marks, starts, starts[1:], strict=False):
            low, high = np.searchsorted(again, (start, end))
            mark[again[low:high] - start] = True
    return paths


def _of_share(hashes: Hashes, share: int, bits: int) -> tuple[npt.NDArray[np.int64], Hashes]:
    """(places, hashes) of those whose top `bits` bits are `share`."""
    if not bits:
        return np.arange(len(hashes)), np.asarray(hashes)
    places = np.flatnonzero((hashes >> (SHIFTS - np.uint64(bits))) == share)
    return places, hashes[places]


@dataclass(frozen=True)
class Reading:
    """How a pass reads one part: as it lies there, or without the units that stood earlier.

    Attributes:
        part: what to read.
        unit: what the marks are of.
        marks: the file that `mark_seen` wrote for the part; None to read the texts as they are.
    """

    part: Part
    unit: Unit = "document"
    marks: Path | None = None

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[Edited]:
        """Every batch of the part; `columns` must hold `text`."""
        seen = None if self.marks is None else np.load(self.marks, mmap_mode="r")
        at = 0
        for batch in read_part(self.part, columns):
            if seen is None:
                yield Edited(batch, text_bytes(batch), np.zeros(batch.num_rows, dtype=bool), 0)
                continue
            texts, emptied, cut = [], np.zeros(batch.num_rows, dtype=bool), 0
            for row, text in enumerate(batch.column("text").to_pylist()):
                units = split(text, self.unit)
                real = [bool(unit) and not unit.isspace() for unit in units]
                gone = iter(seen[at : at + sum(real)])
                at += sum(real)
                kept = [unit for unit, is_real in zip(units, real, strict=True) if not (is_real and next(gone))]
                cut += len(units) - len(kept)
                new = text if len(kept) == len(units) else joined(kept, self.unit)
                emptied[row] = new is not text and not new.strip()
                texts.append(new)
            place = batch.schema.get_field_index("text")
            edited = batch.set_column(place, batch.schema.field(place), pa.array(texts, pa.string()))
            yield Edited(edited, text_bytes(batch), emptied, cut)


@dataclass(frozen=True)
class Edited:
    """One batch as a pass sees it.

    Attributes:
        batch: with what is left of the texts.
        bytes_before: of the texts as they were.
        emptied: bool [rows], where nothing is left.
        units_cut: how many paragraphs or lines are gone.
    """

    batch: pa.RecordBatch
    bytes_before: int
    emptied: npt.NDArray[np.bool_]
    units_cut: int
