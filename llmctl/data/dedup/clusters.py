"""From candidate pairs to clusters, and from each cluster to the documents that stay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from llmctl.data.dedup.shingles import Hashes, jaccard

SMALL_BUCKET = 32  # up to this size all pairs are compared; in larger ones each document with the leaders so far


class Components:
    """Union-find over documents 0 … count-1, with path halving. The smallest index stands for a component."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, item: int) -> int:
        """The representative of `item`'s component."""
        parent = self._parent
        while parent[item] != item:
            parent[item] = item = parent[parent[item]]
        return item

    def join(self, one: int, other: int) -> None:
        """Make the components of both one."""
        low, high = sorted((self.find(one), self.find(other)))
        self._parent[high] = low

    def groups(self) -> list[list[int]]:
        """Components of two and more documents, each ascending, in order of their first document."""
        members: dict[int, list[int]] = defaultdict(list)
        for item in range(len(self._parent)):
            members[self.find(item)].append(item)
        return [group for group in members.values() if len(group) > 1]


@dataclass(frozen=True)
class Removal:
    """One near duplicate: it goes, `representative` stays, and their sets have this Jaccard similarity."""

    document: int
    representative: int
    jaccard: float


class Verifier:
    """Joins candidates whose exact Jaccard similarity reaches the threshold; each pair is compared once."""

    def __init__(self, sets: Sequence[Hashes], threshold: float) -> None:
        self.components = Components(len(sets))
        self.compared = 0
        self._sets = sets
        self._threshold = threshold
        self._rejected: set[tuple[int, int]] = set()

    def add(self, buckets: Iterable[npt.NDArray[np.int64]]) -> None:
        """Verify the candidates of all buckets."""
        for bucket in buckets:
            members = bucket.tolist()
            if len(members) <= SMALL_BUCKET:
                for one, other in combinations(members, 2):
                    self._same(one, other)
                continue
            leaders: list[int] = []
            for member in members:
                if not any(self._same(leader, member) for leader in leaders):
                    leaders.append(member)

    def _same(self, one: int, other: int) -> bool:
        if self.components.find(one) == self.components.find(other):
            return True
        if (one, other) in self._rejected:
            return False
        self.compared += 1
        if self.similarity(one, other) >= self._threshold:
            self.components.join(one, other)
            return True
        self._rejected.add((one, other))
        return False

    def similarity(self, one: int, other: int) -> float:
        """Exact Jaccard similarity of two documents; sizes alone settle hopeless pairs, whose bound is returned."""
        a, b = self._sets[one], self._sets[other]
        bound = min(len(a), len(b)) / max(len(a), len(b))
        return bound if bound < self._threshold else jaccard(a, b)

    def removals(self, rank: Sequence[tuple[int, str]]) -> list[Removal]:
        """What goes: in each component the best document stays and takes away those near it, then the next best.

        A component is a chain of near pairs whose ends may differ; so a document goes only where a document
        that stays reaches the threshold with it.

        Args:
            rank: a sort key by document; the smallest in a cluster stays.
        """
        removed = []
        for group in self.components.groups():
            waiting = sorted(group, key=lambda item: rank[item])
            while waiting:
                best, *rest = waiting
                similar = [(item, self.similarity(best, item)) for item in rest]
                removed += [Removal(item, best, value) for item, value in similar if value >= self._threshold]
                waiting = [item for item, value in similar if value < self._threshold]
        return removed
