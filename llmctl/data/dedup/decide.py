"""What goes and what stays, decided on keys and on the sets of candidates; the texts are not looked at again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from llmctl.data.dedup.clusters import Verifier
from llmctl.data.dedup.groups import Grouping, Groups, Mask, Rows
from llmctl.data.dedup.index import Index
from llmctl.data.dedup.kernel import Hashes
from llmctl.data.dedup.keys import EXACT, Keys, band_names
from llmctl.data.dedup.sets import ShingleSets

STAYS: Final = 0
REASONS = ("", "empty", "exact", "near", "against_exact", "against_near")
EMPTY, EXACT_COPY, NEAR, AGAINST_EXACT, AGAINST_NEAR = range(1, len(REASONS))


class Decisions:
    """What becomes of every document.

    Attributes:
        reason: uint8 [documents], an index of `REASONS`.
        survivor: int64 [documents], the document that stays for it; itself where it stays. Where the reason is
            one of those against an index, a row of the index.
        jaccard: float64 [documents], of their shingle sets.
        compared: pairs of sets that were compared.
    """

    def __init__(self, count: int) -> None:
        self.reason = np.zeros(count, dtype=np.uint8)
        self.survivor: Rows = np.arange(count, dtype=np.int64)
        self.jaccard: npt.NDArray[np.float64] = np.zeros(count)
        self.compared = 0

    @property
    def stays(self) -> Mask:
        """Bool [documents]."""
        stays: Mask = self.reason == STAYS
        return stays

    def remove(self, rows: Rows, survivors: Rows, jaccard: npt.NDArray[np.float64] | float, reason: int) -> None:
        """Note that `rows` go and `survivors` stay for them."""
        self.reason[rows] = reason
        self.survivor[rows] = survivors
        self.jaccard[rows] = jaccard

    def follow(self) -> None:
        """Copies of a document that went itself take its survivor for theirs, and its similarity."""
        copies = np.flatnonzero(self.reason == EXACT_COPY)
        of = self.survivor[copies]
        moved = self.reason[of] != STAYS
        copies, of = copies[moved], of[moved]
        against = np.isin(self.reason[of], (AGAINST_EXACT, AGAINST_NEAR))
        self.reason[copies[against]] = self.reason[of[against]]
        self.survivor[copies], self.jaccard[copies] = self.survivor[of], self.jaccard[of]


@dataclass(frozen=True)
class Candidates:
    """Documents that share a band key with another, or with one of the index.

    Attributes:
        groups: by band.
        rows: their members and those of `pairs`, ascending.
        pairs: int64 [pairs, 2], (document, row of the index).
        index_rows: the rows of the index in `pairs`, ascending.
    """

    groups: list[Groups]
    rows: Rows
    pairs: Rows
    index_rows: Rows


def remove_exact(keys: Keys, grouping: Grouping, index: Index | None, decisions: Decisions) -> None:
    """Decide on documents whose exact keys are equal to another's, or to one of the index."""
    if index is not None:
        rows, theirs = _exact_against(keys, index)
        decisions.remove(rows, theirs, 1.0, AGAINST_EXACT)
    groups = grouping.exact(keys)
    members = groups.members[decisions.stays[groups.members]]
    labels = groups.labels()[decisions.stays[groups.members]]
    ranked = keys.best_first(np.sort(members))
    rank = np.empty(len(keys), dtype=np.int64)
    rank[ranked] = np.arange(len(ranked))
    order = np.lexsort((rank[members], labels))
    members, labels = members[order], labels[order]
    first = np.ones(len(members), dtype=bool)
    first[1:] = labels[1:] != labels[:-1]
    best = members[first][np.cumsum(first) - 1] if len(members) else members
    decisions.remove(members[~first], best[~first], 1.0, EXACT_COPY)


def _exact_against(keys: Keys, index: Index) -> tuple[Rows, Rows]:
    """(documents, rows of the index with the same exact key)."""
    low, high = (keys.column(name) for name in EXACT)
    their_low, their_high = (index.column(name) for name in EXACT)
    known: dict[tuple[int, int], int] = {}
    for row in np.flatnonzero(np.isin(their_low, low)).tolist():
        known.setdefault((int(their_low[row]), int(their_high[row])), row)
    rows = np.flatnonzero(np.isin(low, their_low) & ~keys.column("emptied"))
    pairs = [(row, known.get((int(low[row]), int(high[row])))) for row in rows.tolist()]
    found = np.array([(row, theirs) for row, theirs in pairs if theirs is not None], dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def find_candidates(keys: Keys, grouping: Grouping, index: Index | None, bands: int, among: Mask) -> Candidates:
    """The documents whose sets are worth comparing; `among`: those still there."""
    groups = grouping.near(keys, bands, among)
    pairs = np.empty((0, 2), dtype=np.int64)
    if index is not None:
        rows = np.flatnonzero(keys.column("shingled") & among)
        bits = [_near_against(keys.column(name)[rows], rows, index.column(name)) for name in band_names(bands)]
        pairs = np.unique(np.concatenate(bits), axis=0)
    members = [group.members for group in groups]
    return Candidates(groups, np.unique(np.concatenate([*members, pairs[:, 0]])), pairs, np.unique(pairs[:, 1]))


def _near_against(keys: Hashes, rows: Rows, theirs: Hashes) -> Rows:
    """int64 [pairs, 2], (document, row of the index) with the same key in one band."""
    order = np.argsort(theirs, kind="stable")
    low, high = (np.searchsorted(theirs[order], keys, side=side) for side in ("left", "right"))
    counts = high - low
    places = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(low, counts)
    return np.stack((np.repeat(rows, counts), order[places]), axis=1)


def remove_near_against(candidates: Candidates, sets: ShingleSets, threshold: float, decisions: Decisions) -> None:
    """Decide on documents near one of the index; the most similar one stays for them, of equals the first.

    Args:
        candidates: to be compared.
        sets: of `candidates.rows`, and after them of `candidates.index_rows`.
        threshold: smallest similarity of duplicates.
        decisions: where to note it.
    """
    rows, theirs = candidates.pairs[:, 0], candidates.pairs[:, 1]
    places = np.stack(
        (
            np.searchsorted(candidates.rows, rows),
            len(candidates.rows) + np.searchsorted(candidates.index_rows, theirs),
        ),
        axis=1,
    )
    jaccard = sets.jaccard(places, threshold)
    decisions.compared += len(places)
    near = jaccard >= threshold
    order = np.lexsort((theirs[near], -jaccard[near], rows[near]))
    gone, first = np.unique(rows[near][order], return_index=True)
    decisions.remove(gone, theirs[near][order][first], jaccard[near][order][first], AGAINST_NEAR)


def remove_near(
    keys: Keys, candidates: Candidates, sets: ShingleSets, threshold: float, decisions: Decisions,
    report: Callable[[int, int], None],
) -> None:  # fmt: skip
    """Decide on near duplicates among the documents that are still there.

    Args:
        keys: of all documents.
        candidates: to be compared.
        sets: of `candidates.rows`.
        threshold: smallest similarity of duplicates.
        decisions: where to note it.
        report: called with (bands done, of all).
    """
    rows = candidates.rows
    order = np.searchsorted(rows, keys.best_first(rows))  # documents are numbered best first from here on
    places = np.empty(len(rows), dtype=np.int64)
    places[order] = np.arange(len(rows))
    verifier = Verifier(sets.chosen(order), threshold)
    gone = ~decisions.stays[rows[order]]
    for number, groups in enumerate(candidates.groups):
        there = Groups(np.searchsorted(rows, groups.members), groups.offsets).renumbered(places)
        verifier.add(_without(there, gone))
        report(number + 1, len(candidates.groups))
    removals = verifier.removals()
    original = rows[order]
    decisions.compared += verifier.compared
    decisions.remove(
        original[np.array([removal.document for removal in removals], dtype=np.int64)],
        original[np.array([removal.representative for removal in removals], dtype=np.int64)],
        np.array([removal.jaccard for removal in removals]),
        NEAR,
    )


def _without(groups: Groups, gone: Mask) -> Groups:
    """Only the members that are still there, and only groups of two and more."""
    if not gone.any():
        return groups
    stays = ~gone[groups.members]
    sizes = np.bincount(groups.labels()[stays], minlength=len(groups))
    kept = groups.members[stays & np.repeat(sizes > 1, np.diff(groups.offsets))]
    return Groups(kept, np.concatenate(([0], np.cumsum(sizes[sizes > 1]))).astype(np.int64))


def mask_files(keys: Keys, decisions: Decisions, directory: Path) -> list[Path]:
    """Write for each part which of its documents stay; bool [documents], one .npy file each."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (start, end) in enumerate(zip(keys.starts, keys.starts[1:], strict=False)):
        paths.append(directory / f"{number:05d}.npy")
        np.save(paths[-1], decisions.stays[start:end])
    return paths
