"""From candidates to clusters, and from each cluster to the documents that stay."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmctl.data.dedup.groups import Groups, Rows
from llmctl.data.dedup.kernel import Pairs
from llmctl.data.dedup.sets import ShingleSets

SMALL_GROUP = 32  # up to this size all pairs are compared; in larger ones each document with leaders
PAIRS_AT_ONCE = 1 << 20


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

    def roots(self) -> Rows:
        """int64 [count], every item's representative."""
        roots = np.array(self._parent, dtype=np.int64)
        while not np.array_equal(further := roots[roots], roots):
            roots = further
        return roots

    def together(self, pairs: Pairs) -> npt.NDArray[np.bool_]:
        """Bool [pairs], whether the two of each pair are in one component."""
        if len(pairs) * 8 > len(self._parent):
            ends = self.roots()[pairs]
        else:
            ends = np.array([self.find(item) for item in pairs.ravel().tolist()], dtype=np.int64).reshape(-1, 2)
        same: npt.NDArray[np.bool_] = ends[:, 0] == ends[:, 1]
        return same

    def groups(self) -> list[list[int]]:
        """Components of two and more documents, each ascending, in order of their first document."""
        members: dict[int, list[int]] = defaultdict(list)
        for item, root in enumerate(self.roots().tolist()):
            members[root].append(item)
        return [group for group in members.values() if len(group) > 1]


@dataclass(frozen=True)
class Removal:
    """One near duplicate: it goes, `representative` stays, and their sets have this Jaccard similarity."""

    document: int
    representative: int
    jaccard: float


class Verifier:
    """Joins candidates whose exact Jaccard similarity reaches the threshold.

    Args:
        sets: by document; documents are numbered so that of two duplicates the smaller number stays.
        threshold: smallest similarity of duplicates.
    """

    def __init__(self, sets: ShingleSets, threshold: float) -> None:
        self.components = Components(len(sets))
        self.compared = 0
        self._sets = sets
        self._threshold = threshold

    def add(self, groups: Groups) -> None:
        """Verify the candidates of one band, whose groups are ascending; what is joined is not compared again."""
        sizes = np.diff(groups.offsets)
        for size in np.unique(sizes[sizes <= SMALL_GROUP]).tolist():
            starts = groups.offsets[:-1][sizes == size]
            one, other = np.triu_indices(size, 1)
            step = max(1, PAIRS_AT_ONCE // len(one))
            for first in range(0, len(starts), step):
                table = groups.members[starts[first : first + step, None] + np.arange(size)]
                self._same(np.stack((table[:, one].ravel(), table[:, other].ravel()), axis=1))
        large = np.flatnonzero(sizes > SMALL_GROUP).tolist()
        self._leaders_with_rest([groups.members[groups.offsets[n] : groups.offsets[n + 1]] for n in large])

    def _leaders_with_rest(self, waiting: list[Rows]) -> None:
        """Compare the first of each group with all after them; they leave, and what joined them; then the next.

        A round takes all groups at once, and twice the leaders of the round before: where members are alike, the
        first round is the last; where none are, few rounds compare all pairs.
        """
        leaders = 1
        while waiting := [group for group in waiting if len(group) > 1]:
            leaders = max(1, min(leaders, PAIRS_AT_ONCE // sum(map(len, waiting))))
            places = [np.triu_indices(min(leaders, len(group)), 1, len(group)) for group in waiting]
            pairs = [group[np.stack(pair, axis=1)] for group, pair in zip(waiting, places, strict=True)]
            same = np.split(self._same(np.concatenate(pairs)), np.cumsum([len(own) for own in pairs])[:-1])
            left = []
            for group, (_, other), joined in zip(waiting, places, same, strict=True):
                stays = np.arange(len(group)) >= leaders
                stays[other[joined]] = False
                left.append(group[stays])
            waiting, leaders = left, 2 * leaders

    def _same(self, pairs: Pairs) -> npt.NDArray[np.bool_]:
        """Which pairs are in one component, after comparing those that were not."""
        same = self.components.together(pairs)
        open_ = np.flatnonzero(~same)
        self.compared += len(open_)
        near = open_[self._sets.jaccard(pairs[open_], self._threshold) >= self._threshold]
        for one, other in pairs[near].tolist():
            self.components.join(one, other)
        same[near] = True
        return same

    def removals(self) -> list[Removal]:
        """What goes: in each component the best document stays and takes away those near it, then the next best.

        A component is a chain of near pairs whose ends may differ; so a document goes only where a document
        that stays reaches the threshold with it.
        """
        removed = []
        waiting = [np.array(group) for group in self.components.groups()]
        while waiting:  # one round over all components: each one's best against the rest of it
            pairs = np.concatenate([np.stack((np.full(len(g) - 1, g[0]), g[1:]), axis=1) for g in waiting])
            similar = self._sets.jaccard(pairs, self._threshold)
            near = similar >= self._threshold
            removed += [
                Removal(document, best, value)
                for (best, document), value in zip(pairs[near].tolist(), similar[near].tolist(), strict=True)
            ]
            ends = np.cumsum([len(group) - 1 for group in waiting])
            left = np.split(~near, ends[:-1])
            waiting = [group[1:][stays] for group, stays in zip(waiting, left, strict=True)]
            waiting = [group for group in waiting if len(group) > 1]
        return removed
