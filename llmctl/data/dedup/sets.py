"""The second pass: shingle sets of the few documents that share a key with another, on disk and mapped."""

from __future__ import annotations

import mmap
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
HASHES_AT_ONCE = 1 << 21  # mapped pages are given back after so many (16 MB, and the pages around each that come along)


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
    """Sets of sorted distinct hashes, numbered through over several blocks of memory or mapped files.

    Args:
        blocks: the sets, block after block.
        shift: how many of the lowest bits not to compare.
    """

    def __init__(self, blocks: Sequence[Shingles], shift: int = 0) -> None:
        self.lengths = np.concatenate([np.zeros(0, dtype=np.int64), *(block.lengths() for block in blocks)])
        self._blocks = list(blocks)  # what the addresses point into
        self._addresses = np.concatenate(
            [
                np.zeros(0, dtype=np.uint64),
                *(block.offsets[:-1].astype(np.uint64) * 8 + block.hashes.ctypes.data for block in blocks),
            ]
        ).astype(np.uint64)
        self._shift = shift
        self._read = 0  # hashes since mapped pages were last given back

    @classmethod
    def of(cls, sets: Sequence[Hashes]) -> ShingleSets:
        """From arrays in memory."""
        return cls([concatenate([Shingles(one, np.array([0, len(one)])) for one in sets])])

    @classmethod
    def mapped(cls, directories: Sequence[Path], shift: int = 0) -> ShingleSets:
        """What `spill_sets` left in these directories."""
        blocks = []
        for directory in directories:
            offsets = np.load(directory / OFFSETS_FILE)
            path = directory / HASHES_FILE
            hashes = np.memmap(path, np.uint64, mode="r") if offsets[-1] else np.empty(0, dtype=np.uint64)
            blocks.append(Shingles(hashes, offsets))
        return cls(blocks, shift)

    def __len__(self) -> int:
        return len(self.lengths)

    def chosen(self, order: npt.NDArray[np.int64]) -> ShingleSets:
        """The same sets in another order: number `i` is what `order[i]` was."""
        new = ShingleSets([], self._shift)
        new._blocks = self._blocks
        new.lengths, new._addresses = self.lengths[order], self._addresses[order]
        return new

    def jaccard(self, pairs: Pairs, threshold: float) -> npt.NDArray[np.float64]:
        """Exact Jaccard similarity of each pair; where the sizes alone rule `threshold` out, the bound they give."""
        lengths = self.lengths[pairs]
        small, large = lengths.min(axis=1), lengths.max(axis=1)
        result: npt.NDArray[np.float64] = np.divide(small, large, out=np.zeros(len(pairs)), where=large > 0)
        hopeful = np.flatnonzero(result >= threshold)
        work = np.cumsum(small[hopeful] + large[hopeful])
        for chunk in np.split(hopeful, np.searchsorted(work, np.arange(HASHES_AT_ONCE, _last(work), HASHES_AT_ONCE))):
            common = shared(self._addresses, self.lengths, pairs[chunk], self._shift)
            result[chunk] = common / np.maximum(small[chunk] + large[chunk] - common, 1)
            self._read += int((small[chunk] + large[chunk]).sum())
            if self._read >= HASHES_AT_ONCE:
                self._give_back()
        return result

    def _give_back(self) -> None:
        """Let go of mapped pages; they are read again from the page cache when they are needed."""
        self._read = 0
        for block in self._blocks:
            held = getattr(block.hashes, "_mmap", None)
            if isinstance(held, mmap.mmap):
                held.madvise(mmap.MADV_DONTNEED)


def _last(values: npt.NDArray[np.int64]) -> int:
    return int(values[-1]) if len(values) else 0
