"""Rows of several sources in one order, in which every stretch of training has the shares that were asked for.

Whose row comes at a place of the order is arithmetic, not chance: sources are the leaves of a binary tree, and of
the first n turns that a node has, its left branch gets round(n x share). So how many rows of each source come before
any place is known without counting, nothing is stored, and at every place each source is within
`most_off(sources)` rows of its share. Which row of the source it is: the next of its own endless shuffled epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from llmctl.tokens.order import permuted

Ints = NDArray[np.int64]

PARTS = 10**9  # shares are whole numbers of 1 / PARTS; products with them fit into 64 bits
SOURCE_SEED = 0xD1B54A32D192ED03  # keeps the shuffles of sources apart


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one mixture.

    Attributes:
        rows: its length, over all sources; None: to the end of training.
        shares: of its rows by source, in 1 / `PARTS`.
    """

    rows: int | None
    shares: tuple[int, ...]


@dataclass(frozen=True)
class Mixture:
    """Sources that lie one after the other among the rows, and in which shares training takes them.

    Attributes:
        counts: rows of each source.
        stages: one after the other; the last one has no end.
    """

    counts: tuple[int, ...]
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """From the facts of a manifest, as `facts` writes them."""
        stages = (Stage(stage["rows"], tuple(stage["shares"])) for stage in facts["stages"])
        return cls(tuple(facts["counts"]), tuple(stages))

    def facts(self) -> dict[str, Any]:
        """For a manifest."""
        stages = [{"rows": stage.rows, "shares": list(stage.shares)} for stage in self.stages]
        return {"counts": list(self.counts), "stages": stages}

    def source_of(self, rows: Ints) -> Ints:
        """Number of the source of each row."""
        return np.searchsorted(np.cumsum(self.counts), rows, side="right").astype(np.int64)

    def rows_at(self, seed: int, places: Ints) -> Ints:
        """The rows at `places` of the order, from 0 and without end; int64, same shape."""
        rows = np.empty_like(places)
        begin, used = 0, np.zeros(len(self.counts), dtype=np.int64)
        for stage in self.stages:
            end = np.iinfo(np.int64).max if stage.rows is None else begin + stage.rows
            inside = (places >= begin) & (places < end)
            if inside.any():
                rows[inside] = self._rows(seed, stage, places[inside] - begin, used)
            if stage.rows is None:
                break
            used += taken(stage.shares, np.array([stage.rows]))[:, 0]
            begin = end
        return rows

    def _rows(self, seed: int, stage: Stage, turns: Ints, used: Ints) -> Ints:
        """The rows at `turns` of a stage before which `used` rows of each source were taken."""
        before = taken(stage.shares, turns)
        source = np.argmax(taken(stage.shares, turns + 1) - before, axis=0)
        number = used[source] + before[source, np.arange(turns.size)]
        first = np.cumsum(self.counts) - self.counts
        rows = np.empty_like(turns)
        for one in np.unique(source).tolist():
            its = source == one
            rows[its] = first[one] + permuted(seed + one * SOURCE_SEED, number[its], self.counts[one])
        return rows

    def passes(self, rows: int) -> list[float]:
        """How often each source was seen after so many rows."""
        left, used = rows, np.zeros(len(self.counts), dtype=np.int64)
        for stage in self.stages:
            part = left if stage.rows is None else min(left, stage.rows)
            used += taken(stage.shares, np.array([part]))[:, 0]
            left -= part
        return [count / rows if rows else 0.0 for count, rows in zip(used.tolist(), self.counts, strict=True)]


def taken(shares: Sequence[int], turns: Ints) -> Ints:
    """How many of the first n turns each source gets, for each n of `turns`; int64 [sources, len(turns)]."""
    if len(shares) == 1:
        return turns[np.newaxis]
    half = len(shares) // 2
    left = _rounded_share(turns, sum(shares[:half]), sum(shares))
    return np.concatenate((taken(shares[:half], left), taken(shares[half:], turns - left)))


def most_off(sources: int) -> float:
    """Rows that a source is ahead of or behind its share at most: half a row for each branching above it."""
    return (sources - 1).bit_length() / 2


def row_shares(weights: Sequence[float], rows: Sequence[int], tokens: Sequence[int]) -> tuple[int, ...]:
    """Shares of rows, in 1 / `PARTS`, that give each source its weight in tokens.

    Args:
        weights: by source, in any scale; 0 leaves one out.
        rows: by source.
        tokens: by source; rows are not all equally full.
    """
    raw = [Fraction(w) * r / t if w else Fraction(0) for w, r, t in zip(weights, rows, tokens, strict=True)]
    exact = [PARTS * value / sum(raw) for value in raw]
    whole = [int(value) for value in exact]
    by_rest = sorted(range(len(raw)), key=lambda number: (whole[number] - exact[number], number))
    for number in by_rest[: PARTS - sum(whole)]:
        whole[number] += 1
    return tuple(whole)


def _rounded_share(turns: Ints, part: int, whole: int) -> Ints:
    """`turns` x part / whole, rounded half up, in whole numbers that cannot overflow."""
    if whole == 0:
        return np.zeros_like(turns)
    times: Ints = turns // whole
    rest = turns - times * whole
    return times * part + (rest * part + whole // 2) // whole
