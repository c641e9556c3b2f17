"""The most frequent items of a stream in bounded memory, with the error that this costs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]


class HeavyHitters:
    """Counts of the most frequent keys (Misra and Gries 1982; mergeable: Agarwal et al. 2012).

    A count is at most the true one and at least the true one less `error`. As long as there were no more
    different keys than `capacity`, `error` is 0 and every count is exact. In general it is at most the number
    of items over (capacity + 1).

    Args:
        capacity: how many keys are kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.error = 0
        self.items = 0
        self.keys: Keys = np.empty(0, dtype=np.uint64)
        self.counts: Ints = np.empty(0, dtype=np.int64)
        self._names: dict[int, str] = {}

    def add(self, keys: Keys, counts: Ints, name: Callable[[Ints], list[str]]) -> None:
        """Count a batch.

        Args:
            keys: sorted, each once.
            counts: how often each came.
            name: texts of some of them, by their places in `keys`; asked only for those that stay.
        """
        self.items += int(counts.sum())
        self._combine(keys, counts)
        fresh = np.isin(keys, self.keys, assume_unique=True)
        places = np.flatnonzero(fresh)
        places = np.array([place for place in places.tolist() if int(keys[place]) not in self._names], dtype=np.int64)
        self._names.update(zip(keys[places].tolist(), name(places), strict=True))

    def merge(self, other: HeavyHitters) -> None:
        """Add what another one has counted."""
        self.items += other.items
        self.error += other.error
        self._names = {**other._names, **self._names}
        self._combine(other.keys, other.counts)

    def top(self, most: int) -> list[tuple[str, int]]:
        """The most frequent ones, by count and then by text."""
        named = [(self._names[key], count) for key, count in zip(self.keys.tolist(), self.counts.tolist(), strict=True)]
        return sorted(named, key=lambda item: (-item[1], item[0]))[:most]

    def _combine(self, keys: Keys, counts: Ints) -> None:
        """Add up; where there are too many keys, take the count of the first that must go from all of them."""
        merged, places = np.unique(np.concatenate([self.keys, keys]), return_inverse=True)
        totals = np.zeros(len(merged), dtype=np.int64)
        np.add.at(totals, places, np.concatenate([self.counts, counts]))
        if len(merged) > self.capacity:
            place = len(totals) - self.capacity - 1
            least = int(np.partition(totals, place)[place])
            stays = totals > least
            merged, totals = merged[stays], totals[stays] - least
            self.error += least
            self._names = {key: self._names[key] for key in merged.tolist() if key in self._names}
        self.keys, self.counts = merged, totals
