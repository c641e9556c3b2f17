"""Wrong answers that no length tells from the right one: those of other entries of the same kind."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from llmctl.data.lessons.documentation import Entry
from llmctl.data.lessons.draw import key, pick

NEAREST = 6  # wrong answers are drawn from this many shorter and longer candidates for each that is wanted
MOST_SHARED_WORDS = 0.5  # Jaccard similarity of two answers' words


class Answers:
    """The answers about some entries, each kind's by their lengths.

    Args:
        entries: what is asked about.
        text: the answer about an entry.
    """

    def __init__(self, entries: Iterable[Entry], text: Callable[[Entry], str]) -> None:
        self._text = text
        self._ranked: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            self._ranked[entry.kind].append(entry)
        self._place: dict[str, int] = {}
        for ranked in self._ranked.values():
            ranked.sort(key=lambda entry: (len(text(entry)), entry.id))
            self._place |= {entry.id: place for place, entry in enumerate(ranked)}

    def wrong(self, entry: Entry, wanted: int, seed: int) -> list[str]:
        """At most `wanted` answers about other documents, nearly as long as the entry's and unlike each other.

        How many are shorter and how many longer is drawn too: were it left to chance, the right answer would mostly
        be of middling length, and length would tell it.
        """
        ranked, place = self._ranked[entry.kind], self._place[entry.id]
        below = self._elsewhere(entry, reversed(ranked[:place]), NEAREST * wanted)[::-1]
        above = self._elsewhere(entry, itertools.islice(ranked, place + 1, None), NEAREST * wanted)
        shorter = key(seed, entry.id, "shorter") % (wanted + 1)
        chosen = [self._text(entry)]
        for candidates, count in ((below, 1 + shorter), (above, 1 + wanted), (below, 1 + wanted)):
            for other in pick(candidates, len(candidates), seed, entry.id, "wrong"):
                if len(chosen) < count and all(_shared(other, kept) < MOST_SHARED_WORDS for kept in chosen):
                    chosen.append(other)
        return pick(chosen[1:], wanted, seed, entry.id, "order")

    def _elsewhere(self, entry: Entry, others: Iterator[Entry], most: int) -> Sequence[str]:
        found = (self._text(other) for other in others if other.document != entry.document)
        return list(itertools.islice(found, most))


def _shared(one: str, other: str) -> float:
    a, b = set(one.casefold().split()), set(other.casefold().split())
    return len(a & b) / len(a | b)
