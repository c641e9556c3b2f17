"""Which slice of which document goes to which row: best-fit decreasing over lengths, in NumPy.

Best fit takes each document, longest first, to the fullest row that still holds it (Johnson, 1973; used for
training data by Ding et al., "Fewer Truncations Improve Language Modeling", 2024). Documents of one length are
placed together, and rows with the same room are one group, so the work grows with the number of lengths and not
with that of documents. A document longer than a row is first cut into whole rows and a rest.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_PADDING = 0.01

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """Slices in row order. Arrays are int64.

    Attributes:
        document: [slices] index of the document.
        start: [slices] first token within the document.
        length: [slices] tokens.
        first: [rows + 1] first slice of each row.
    """

    document: Ints
    start: Ints
    length: Ints
    first: Ints

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.first.size - 1

    def padding(self, seq_len: int) -> float:
        """Share of the rows' places that hold no token."""
        return 1.0 - float(self.length.sum()) / (self.rows * seq_len) if self.rows else 0.0

    def documents_of(self, row: int) -> Ints:
        """The documents of one row's slices, in order."""
        return self.document[self.first[row] : self.first[row + 1]]


def fit(tokens: Ints, seq_len: int) -> Layout:
    """Pack documents of `tokens` lengths into rows of `seq_len`.

    Every token of every document is in exactly one slice. Padding is under `MAX_PADDING` of all places, or less
    than one row where the rows are too few for that. Rows come in the order in which packing opened them:
    rows full of one long document first, then by falling length of the first document; slices within a row by
    document. The same lengths give the same layout.
    """
    document, start, length = _cut(np.asarray(tokens, dtype=np.int64), seq_len)
    row, rows = _best_fit(length, seq_len)
    document, start, length, row, rows = _fill_gaps(document, start, length, row, rows, seq_len)
    return _layout(document, start, length, row, rows)


def fit_whole(tokens: Ints, seq_len: int) -> Layout:
    """Pack documents into rows as `fit` does, but cut none: there is as much padding as that leaves.

    Raises:
        ValueError: a document is longer than a row.
    """
    length = np.asarray(tokens, dtype=np.int64)
    longest = int(length.max(initial=0))
    if longest > seq_len:
        raise ValueError(f"a document of {longest} tokens does not fit into a row of {seq_len}")
    row, rows = _best_fit(length, seq_len)
    return _layout(np.arange(length.size, dtype=np.int64), np.zeros_like(length), length, row, rows)


def joined(layouts: Sequence[Layout], documents: Sequence[int]) -> Layout:
    """Layouts one after the other, where the first has documents 0 to `documents[0]` - 1, and so on."""
    before = np.cumsum([0, *documents])
    slices = np.cumsum([0, *(layout.document.size for layout in layouts)])
    firsts = [layout.first[:-1] + at for layout, at in zip(layouts, slices, strict=False)]
    return Layout(
        np.concatenate([layout.document + at for layout, at in zip(layouts, before, strict=False)]),
        np.concatenate([layout.start for layout in layouts]),
        np.concatenate([layout.length for layout in layouts]),
        np.concatenate([*firsts, slices[-1:]]),
    )


def _layout(document: Ints, start: Ints, length: Ints, row: Ints, rows: int) -> Layout:
    """Slices in any order as a layout: by row, within a row by document, within a document by start."""
    order = np.lexsort((start, document, row))
    first = np.searchsorted(row[order], np.arange(rows + 1))
    return Layout(document[order], start[order], length[order], first.astype(np.int64))


def _cut(tokens: Ints, seq_len: int) -> tuple[Ints, Ints, Ints]:
    """Document, start and length of slices of at most `seq_len` tokens; document order."""
    parts = -(-tokens // seq_len)
    document = np.repeat(np.arange(tokens.size, dtype=np.int64), parts)
    number = np.arange(document.size, dtype=np.int64) - np.repeat(np.cumsum(parts) - parts, parts)
    start = number * seq_len
    return document, start, np.minimum(seq_len, tokens[document] - start)


class _OpenRows:
    """Rows by the room left in them: groups of equal room, kept in order of room."""

    def __init__(self) -> None:
        self._rooms: list[int] = []  # sorted, those with rows
        self._rows: dict[int, list[Ints]] = {}

    def fullest(self, length: int) -> int | None:
        """The smallest room of at least `length`, or None."""
        at = bisect.bisect_left(self._rooms, length)
        return self._rooms[at] if at < len(self._rooms) else None

    def add(self, room: int, rows: Ints) -> None:
        """Put `rows`, which have `room` left, last in their group."""
        if room == 0 or not rows.size:
            return
        if room not in self._rows:
            bisect.insort(self._rooms, room)
            self._rows[room] = []
        self._rows[room].append(rows)

    def take(self, room: int, count: int) -> Ints:
        """Remove up to `count` rows from one group, all from its oldest member array."""
        group = self._rows[room]
        taken, rest = group[0][:count], group[0][count:]
        if rest.size:
            group[0] = rest
        else:
            group.pop(0)
        if not group:
            del self._rows[room]
            self._rooms.remove(room)
        return taken


def _best_fit(length: Ints, seq_len: int) -> tuple[Ints, int]:
    """The row of each slice, and the number of rows."""
    row = np.empty(length.size, dtype=np.int64)
    order = np.argsort(-length, kind="stable")
    sizes, counts = np.unique(length, return_counts=True)
    open_rows, rows, at = _OpenRows(), 0, 0
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        left = count
        while left:
            room = open_rows.fullest(size)
            each = (room or seq_len) // size  # a row is filled before the next: it stays the fullest that fits
            wanted = -(-left // each)
            if room is None:
                chosen = np.arange(rows, rows + wanted)
                room, rows = seq_len, rows + wanted
            else:
                chosen = open_rows.take(room, wanted)
            placed = min(left, chosen.size * each)
            row[order[at : at + placed]] = np.repeat(chosen, each)[:placed]
            at, left = at + placed, left - placed
            whole = placed // each
            open_rows.add(room - each * size, chosen[:whole])
            open_rows.add(room - (placed % each) * size, chosen[whole:])
    return row, rows


def _fill_gaps(
    document: Ints, start: Ints, length: Ints, row: Ints, rows: int, seq_len: int
) -> tuple[Ints, Ints, Ints, Ints, int]:
    """Dissolve the emptiest rows and cut their slices into the gaps of the others, until padding is small."""
    room = seq_len - np.bincount(row, weights=length, minlength=rows).astype(np.int64)
    dissolved = _rows_to_dissolve(int(room.sum()), rows, seq_len)
    if not dissolved:
        return document, start, length, row, rows
    by_room = np.argsort(-room, kind="stable")
    gone, gaps = by_room[:dissolved], by_room[dissolved:]  # large gaps are filled first: fewest cuts
    is_gone = np.isin(row, gone)
    moved = np.flatnonzero(is_gone)
    ends = np.cumsum(length[moved])
    gap_ends = np.cumsum(room[gaps])
    cuts = np.unique(np.concatenate(([0], ends, gap_ends[gap_ends < ends[-1]])))
    piece = np.searchsorted(ends, cuts[:-1], side="right")
    source = moved[piece]
    new_start = start[source] + cuts[:-1] - (ends - length[moved])[piece]
    new_row = gaps[np.searchsorted(gap_ends, cuts[:-1], side="right")]
    number = np.cumsum(~np.isin(np.arange(rows), gone)) - 1  # of the rows that stay
    return (
        np.concatenate((document[~is_gone], document[source])),
        np.concatenate((start[~is_gone], new_start)),
        np.concatenate((length[~is_gone], np.diff(cuts))),
        number[np.concatenate((row[~is_gone], new_row))],
        rows - dissolved,
    )


def _rows_to_dissolve(padding: int, rows: int, seq_len: int) -> int:
    """Fewest rows to give up so that padding is under `MAX_PADDING`, while the others still hold everything."""
    most = padding // seq_len
    excess = padding - MAX_PADDING * rows * seq_len
    return 0 if excess < 0 else min(most, int(excess / (seq_len * (1 - MAX_PADDING))) + 1)
