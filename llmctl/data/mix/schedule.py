"""Whose turn it is: sources interleaved so that every prefix has the right shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

PARTS = 10**12  # shares are whole numbers of 1 / PARTS, so that turns are decided without rounding


def shares(sizes: Mapping[str, int], weights: Mapping[str, float], temperature: float) -> dict[str, float]:
    """Each source's share of the mixture; they add up to 1.

    Args:
        sizes: of each source, in the unit of the mixture; positive.
        weights: by source, in any scale; empty: size ^ (1 / temperature), as in multilingual training
            (Conneau and Lample 2019; Xue et al. 2021).
        temperature: only without weights.
    """
    largest = max(sizes.values())
    raw = {name: weights[name] if weights else (sizes[name] / largest) ** (1 / temperature) for name in sizes}
    total = sum(raw.values())
    return {name: value / total for name, value in raw.items()}


@dataclass(frozen=True)
class Turns:
    """A schedule.

    Attributes:
        source: by turn, the number of the source whose next document comes.
        short: the source whose turn it was when it had nothing left; None where the total was reached.
    """

    source: npt.NDArray[np.int32]
    short: int | None


class Supply:
    """The documents of one source in the order in which they are taken, epoch after epoch.

    Args:
        order: the order of an epoch (from 0), as indices of documents; the same documents every time.
        sizes: int64 by index, in the unit of the shares.
        limit: how many documents may be taken in all.
    """

    def __init__(self, order: Callable[[int], Ints], sizes: Ints, limit: int) -> None:
        self.taken = 0
        self._limit = limit
        self._order, self._sizes = order, sizes
        self._epochs: list[Ints] = []
        self._waiting: list[int] = []  # sizes of this epoch
        self._place = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing may be taken any more."""
        return self.taken == self._limit

    def next_size(self) -> int:
        """Size of the document that is next; there must be one."""
        if self._place == len(self._waiting):
            self._epochs.append(self._order(len(self._epochs)))
            self._waiting, self._place = self._sizes[self._epochs[-1]].tolist(), 0
        return self._waiting[self._place]

    def take(self) -> int:
        """The index of that document; the one after it is next."""
        document = int(self._epochs[-1][self._place])
        self.taken += 1
        self._place += 1
        return document

    def documents(self) -> Ints:
        """Indices of the documents taken, in order."""
        return np.concatenate([*self._epochs, np.empty(0, np.int64)])[: self.taken]


def interleave(
    supplies: Sequence[Supply], share: Sequence[float], enough: Callable[[int, int], bool], *, go_on: bool = False
) -> Turns:
    """Give turns by worst-case fair weighted queueing (WF2Q; Bennett and Zhang, INFOCOM 1996).

    Of the sources that are not ahead of their share, the one comes whose next document would be due first. At
    every prefix a source is then at most one document (the largest of all) behind its share and at most one of
    its own ahead of it, whatever the sizes are.

    Args:
        supplies: by source.
        share: by source; positive.
        enough: asked after each turn with (source, index of the document taken); true ends the schedule.
        go_on: leave out a source that has nothing left and go on with the others; otherwise it ends the schedule.
    """
    parts = [max(1, round(value * PARTS)) for value in share]
    active = list(range(len(parts)))
    used, total = [0] * len(parts), 0
    turns: list[int] = []
    short: int | None = None
    while active:
        chosen = _next_turn(active, supplies, parts, used, total)
        supply = supplies[chosen]
        if supply.is_empty:
            short = chosen
            if not go_on:
                break
            active.remove(chosen)
            used, total = [0] * len(parts), 0  # from here on the others share what comes
            continue
        size = supply.next_size()
        used[chosen] += size
        total += size
        turns.append(chosen)
        if enough(chosen, supply.take()):
            short = None
            break
    return Turns(np.array(turns, dtype=np.int32), short)


def _next_turn(
    active: Sequence[int], supplies: Sequence[Supply], parts: Sequence[int], used: Sequence[int], total: int
) -> int:
    """The source whose turn it is: one that is empty and not ahead of its share, or the one that is due first."""
    whole = sum(parts[number] for number in active)
    waiting = [number for number in active if used[number] * whole <= total * parts[number]]
    for number in waiting:
        if supplies[number].is_empty:
            return number
    if len(waiting) == 1:
        return waiting[0]
    return min(waiting, key=lambda number: (used[number] + supplies[number].next_size()) / parts[number])
