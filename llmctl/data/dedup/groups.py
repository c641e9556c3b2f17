"""Which documents share a key: the relational half of deduplication, on columns of keys alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from llmctl.data.dedup.kernel import Hashes, Offsets
from llmctl.data.dedup.keys import EXACT, Keys, band_names

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Groups:
    """Groups of two and more documents.

    Attributes:
        members: int64, the documents of one group after those of the other.
        offsets: int64 [groups + 1].
    """

    members: Rows
    offsets: Offsets

    @classmethod
    def of(cls, groups: Sequence[Sequence[int] | Rows]) -> Self:
        """From a list of groups."""
        members = np.concatenate([np.asarray(group, dtype=np.int64) for group in groups]) if groups else np.empty(0)
        lengths = [len(group) for group in groups]
        return cls(members.astype(np.int64), np.concatenate(([0], np.cumsum(lengths))).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[Rows]:
        ends = self.offsets.tolist()
        return (self.members[a:b] for a, b in itertools.pairwise(ends))

    def labels(self) -> Rows:
        """int64 [members], the number of each member's group."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def renumbered(self, places: Rows) -> Groups:
        """With each member `m` called `places[m]`, ascending in each group."""
        members = places[self.members]
        return Groups(members[np.lexsort((members, self.labels()))], self.offsets)


class Grouping(Protocol):
    """Finds groups; here with NumPy, or on the cluster (`daft_groups`), with the same result to the last group."""

    def exact(self, keys: Keys) -> Groups:
        """Documents with equal exact keys, those that lost all their units left out."""
        ...

    def near(self, keys: Keys, bands: int, among: Mask) -> list[Groups]:
        """By band: documents with equal band keys, of those with words that `among` names."""
        ...


class NumpyGrouping:
    """Sorts one column of keys at a time. Memory: some 32 bytes a document, and the groups that it finds."""

    def exact(self, keys: Keys) -> Groups:
        """As `Grouping.exact`."""
        low, high = (keys.column(name) for name in EXACT)
        rows = np.flatnonzero(~keys.column("emptied"))
        alike = sharing(low[rows], rows)
        if not len(alike):
            return alike
        members = alike.members  # the same low half; nearly always the same document
        order = np.lexsort((members, high[members], low[members]))
        return runs(members[order], low[members[order]], high[members[order]])

    def near(self, keys: Keys, bands: int, among: Mask) -> list[Groups]:
        """As `Grouping.near`."""
        rows = np.flatnonzero(keys.column("shingled") & among)
        return [sharing(keys.column(name)[rows], rows) for name in band_names(bands)]


def sharing(keys: Hashes, rows: Rows) -> Groups:
    """Rows (ascending) whose keys are equal, in the order of the keys; each group ascending."""
    order = np.argsort(keys)
    in_order = keys[order]
    same = in_order[1:] == in_order[:-1]
    shared = np.zeros(len(keys), dtype=bool)  # by place in the order: whether a neighbour has the same key
    shared[1:] |= same
    shared[:-1] |= same
    kept = order[shared]
    kept = kept[np.lexsort((kept, keys[kept]))]
    return runs(rows[kept], keys[kept])


def runs(members: Rows, *keys: npt.NDArray[Any]) -> Groups:
    """Groups of neighbours that agree in all keys; those that stand alone are left out."""
    if not len(members):
        return Groups(members, np.zeros(1, dtype=np.int64))
    starts = np.ones(len(members), dtype=bool)
    starts[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    bounds = np.append(np.flatnonzero(starts), len(members))
    lengths = np.diff(bounds)
    kept = members[np.repeat(lengths > 1, lengths)]
    return Groups(kept, np.concatenate(([0], np.cumsum(lengths[lengths > 1]))).astype(np.int64))
