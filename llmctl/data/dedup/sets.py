"""The second pass: shingle sets of the documents that share a key with another, on disk."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llmctl.data.dedup.kernel import Hashes, Offsets, Pairs, Shingles, concatenate, normalise, shared, shingles
from llmctl.data.dedup.units import Reading
from llmctl.data.parts import Report
from llmctl.data.workers import in_order
from llmctl.store.files import publish

HASHES_FILE, OFFSETS_FILE = "shingles.bin", "offsets.npy"
HASHES_AT_ONCE = 1 << 21  # compared at a time: up to 16 MB are read for it
HELD_IN_MEMORY = 1 << 24  # up to so many hashes (128 MB) are not left in their files


@dataclass(frozen=True)
class SetTask:
    """One part of which some documents' sets are wanted.

    Attributes:
        reading: how to read it.
        rows: the documents, by their place in the part, ascending.
        ngram_words: words per shingle.
        threads: batches worked on at a time.
    """

    reading: Reading
    rows: npt.NDArray[np.int64]
    ngram_words: int
    threads: int = 1


def spill_sets(task: SetTask, directory: Path) -> Report:
    """Write the sorted distinct shingle hashes of the chosen documents of one part."""
    found: list[Offsets] = []
    with publish(directory / HASHES_FILE) as handle:
        for sets in in_order(
            lambda texts: shingles(normalise(texts), task.ngram_words).sets(), _wanted(task), task.threads
        ):
            handle.write(sets.hashes.data)
            found.append(sets.lengths())
    write_offsets(directory, found)
    return Report()


def _wanted(task: SetTask) -> Iterator[pa.Array]:
    """The texts of the chosen documents, batch by batch."""
    first = 0
    for edited in task.reading.batches(["text"]) if len(task.rows) else ():
        low, high = np.searchsorted(task.rows, (first, first + edited.batch.num_rows))
        yield edited.batch.column("text").take(pa.array(task.rows[low:high] - first))
        first += edited.batch.num_rows


def write_offsets(directory: Path, lengths: Sequence[Offsets]) -> None:
    """Write where each set begins and ends, from the lengths of the sets."""
    ends = np.cumsum(np.concatenate([np.zeros(1, dtype=np.int64), *lengths]))
    with publish(directory / OFFSETS_FILE) as handle:
        np.save(handle, ends)


class ShingleSets:
    """Sets of sorted distinct hashes: in memory, or in files from which those to be compared are read.

    Attributes:
        lengths: int64 [sets], hashes in each.
    """

    def __init__(self, given: Shingles, shift: int = 0, threads: int = 1) -> None:
        self.lengths = given.lengths()
        self._shift, self._threads = shift, threads
        self._hashes = given.hashes  # none where they lie in files
        self._paths: list[Path] = []
        self._file: npt.NDArray[np.int64] = np.zeros(len(given), dtype=np.int64)
        self._at = given.offsets[:-1]  # where each set begins in its file, in hashes
        self._addresses = given.offsets[:-1].astype(np.uint64) * 8 + np.uint64(given.hashes.ctypes.data)

    @classmethod
    def of(cls, sets: Sequence[Hashes]) -> ShingleSets:
        """From arrays in memory."""
        return cls(concatenate([Shingles(one, np.array([0, len(one)])) for one in sets]))

    @classmethod
    def spilled(cls, directories: Sequence[Path], shift: int = 0, threads: int = 1) -> ShingleSets:
        """What `spill_sets` left in these directories: in memory if it is little.

        Args:
            directories: of the parts, in order.
            shift: how many of the lowest bits not to compare.
            threads: comparisons at a time.
        """
        offsets = [np.load(directory / OFFSETS_FILE) for directory in directories]
        paths = [directory / HASHES_FILE for directory in directories]
        lengths = np.concatenate([np.diff(own) for own in offsets])
        ends = np.concatenate(([0], np.cumsum(lengths)))
        if ends[-1] <= HELD_IN_MEMORY:
            hashes = np.empty(ends[-1], dtype=np.uint64)
            left = memoryview(hashes.view(np.uint8).data)
            for path in paths:
                with open(path, "rb", buffering=0) as handle:
                    left = left[handle.readinto(left) :]
            return cls(Shingles(hashes, ends), shift, threads)
        new = cls(Shingles(np.empty(0, dtype=np.uint64), np.zeros(1, dtype=np.int64)), shift, threads)
        new.lengths = lengths
        new._paths = paths
        new._file = np.repeat(np.arange(len(paths)), [len(own) - 1 for own in offsets])
        new._at = np.concatenate([own[:-1] for own in offsets])
        return new

    def __len__(self) -> int:
        return len(self.lengths)

    def chosen(self, order: npt.NDArray[np.int64]) -> ShingleSets:
        """The same sets in another order: number `i` is what `order[i]` was."""
        new = ShingleSets(Shingles(self._hashes, np.zeros(1, dtype=np.int64)), self._shift, self._threads)
        new._paths = self._paths
        new.lengths, new._file, new._at = self.lengths[order], self._file[order], self._at[order]
        new._addresses = self._addresses if self._paths else self._addresses[order]
        return new

    def _shared(self, pairs: Pairs, least: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """int64 [pairs], hashes in common; below `least`, maybe too many, but still below it."""
        if not self._paths:
            return shared(self._addresses, self.lengths, pairs, least, self._shift)
        wanted, places = np.unique(pairs, return_inverse=True)
        lengths = self.lengths[wanted]
        ends = np.cumsum(lengths)
        begins = ends - lengths
        hashes = np.empty(int(lengths.sum()), dtype=np.uint64)
        view = memoryview(hashes.view(np.uint8).data)
        files = self._file[wanted]
        order = np.lexsort((self._at[wanted], files))  # one file after the other, each from its start to its end
        for file, sets in itertools.groupby(order.tolist(), files.item):
            with open(self._paths[file], "rb", buffering=0) as handle:
                for one in sets:
                    os.preadv(handle.fileno(), [view[8 * begins[one] : 8 * ends[one]]], 8 * int(self._at[wanted[one]]))
        addresses = begins.astype(np.uint64) * 8 + np.uint64(hashes.ctypes.data)
        return shared(addresses, lengths, places.reshape(-1, 2), least, self._shift)

    def jaccard(self, pairs: Pairs, threshold: float) -> npt.NDArray[np.float64]:
        """Jaccard similarity of each pair: exact from `threshold` on; below it, a bound that is below it too."""
        lengths = self.lengths[pairs]
        total, small = lengths.sum(axis=1), lengths.min(axis=1)
        result: npt.NDArray[np.float64] = np.divide(small, total - small, out=np.zeros(len(pairs)), where=total > 0)
        hopeful = np.flatnonzero(result >= threshold)
        least = np.floor(threshold / (1 + threshold) * total).astype(np.int64)  # J >= t where common / total >= t/(1+t)
        work = np.cumsum(total[hopeful])
        chunks = np.split(hopeful, np.searchsorted(work, np.arange(HASHES_AT_ONCE, _last(work), HASHES_AT_ONCE)))
        threads = min(self._threads, len(chunks))
        found = in_order(lambda chunk: self._shared(pairs[chunk], least[chunk]), chunks, threads)
        for chunk, common in zip(chunks, found, strict=True):
            result[chunk] = common / np.maximum(total[chunk] - common, 1)
        return result


def _last(values: npt.NDArray[np.int64]) -> int:
    return int(values[-1]) if len(values) else 0
