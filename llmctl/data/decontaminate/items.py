"""The evaluation set: its texts, and a table of their word n-grams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llmctl.config.errors import InputError
from llmctl.data.dedup.kernel import Hashes, normalise, shingles
from llmctl.data.raw import raw_rows
from llmctl.store.artifact import Input

FILTER_BITS = 22
NAMES = ("id", "role")


@dataclass(frozen=True)
class Item:
    """One evaluation item.

    Attributes:
        name: its `id`, or its file and line.
        texts: what its text fields hold.
    """

    name: str
    texts: list[str]


def read_items(given: Input, fields: Sequence[str]) -> Iterator[Item]:
    """Every item of an evaluation set.

    Raises:
        InputError: a row has none of the fields.
    """
    for where, row in raw_rows(given):
        present = [field for field in fields if row.get(field) is not None]
        if not present:
            raise InputError(
                f"{where} has none of the text fields {', '.join(fields)}",
                hint=f"name them with fields=[…]; it has: {', '.join(row)}",
            )
        name = row.get("id")
        texts = [text for field in present for text in texts_in(row[field], ())]
        yield Item(where if name is None else str(name), texts)


def texts_in(value: Any, leave_out: Sequence[str] = NAMES) -> Iterator[str]:
    """Every string in a value, however it nests them; not under keys that name things."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for key, part in value.items() if key not in leave_out for text in texts_in(part, leave_out))
    elif isinstance(value, list | tuple):
        yield from (text for part in value for text in texts_in(part, leave_out))


@dataclass(frozen=True)
class Table:
    """The n-grams of one width, sorted by hash; one that stands in several items is there for each of them.

    Attributes:
        width: words of an n-gram.
        hashes: uint64 [n-grams].
        items: int64 [n-grams], the number of the item.
        filter: bool [2^FILTER_BITS], whether any hash has these lowest bits.
    """

    width: int
    hashes: Hashes
    items: npt.NDArray[np.int64]
    filter: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, width: int, hashes: Hashes, items: npt.NDArray[np.int64]) -> Table:
        """Sorted, each pair once."""
        order = np.lexsort((items, hashes))
        hashes, items = hashes[order], items[order]
        new = np.ones(len(hashes), dtype=bool)
        new[1:] = (hashes[1:] != hashes[:-1]) | (items[1:] != items[:-1])
        hashes = hashes[new]
        held = np.zeros(1 << FILTER_BITS, dtype=bool)
        held[hashes & np.uint64(len(held) - 1)] = True
        return cls(width, hashes, items[new], held)

    def places(self, hashes: Hashes) -> npt.NDArray[np.int64]:
        """Where in `hashes` there is an n-gram of the table, ascending."""
        maybe = np.flatnonzero(self.filter[hashes & np.uint64(len(self.filter) - 1)])
        found = np.searchsorted(self.hashes, hashes[maybe])
        found[found == len(self.hashes)] = 0
        places: npt.NDArray[np.int64] = maybe[self.hashes[found] == hashes[maybe]]
        return places

    def items_with(self, value: np.uint64) -> npt.NDArray[np.int64]:
        """The items that hold this n-gram."""
        low, high = np.searchsorted(self.hashes, value), np.searchsorted(self.hashes, value, side="right")
        return self.items[low:high]


def tables(items: Sequence[Item], ngram_words: int, min_words: int) -> tuple[list[Table], int]:
    """(a table for each width of n-grams that occurs, items in which no text is long enough).

    A text of at least `ngram_words` words gives all its n-grams; one of fewer, but at least `min_words`, is one
    n-gram of its own width. N-grams do not reach over from one text to the next.
    """
    owners = np.repeat(np.arange(len(items)), [len(item.texts) for item in items])
    column = pa.array([text for item in items for text in item.texts], pa.string())
    texts = normalise(column)
    words = shingles(texts, 1).lengths()
    found = shingles(texts, ngram_words)
    widths = np.minimum(words, ngram_words)
    by_hash = np.repeat(np.arange(len(column)), found.lengths())
    made = [
        Table.of(width, found.hashes[widths[by_hash] == width], owners[by_hash[widths[by_hash] == width]])
        for width in np.unique(widths[widths >= min_words]).tolist()
    ]
    return made, len(items) - len(np.unique(owners[words >= min_words]))
