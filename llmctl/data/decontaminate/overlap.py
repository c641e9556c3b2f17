"""Where documents hold n-grams of the evaluation set: found by hash, then placed in the text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from llmctl.data.decontaminate.items import Table
from llmctl.data.dedup.kernel import WORD, normalise, shingles


@dataclass(frozen=True)
class Span:
    """A run of words that stands in an evaluation item.

    Attributes:
        item: the number of the item.
        ngrams: how many of its n-grams begin in the run.
        start, end: where the run lies in the text, in characters.
    """

    item: int
    ngrams: int
    start: int
    end: int


def find(column: pa.Array, tables: Sequence[Table], min_ngrams: int) -> dict[int, list[Span]]:
    """By row: the spans of items of which the text holds at least `min_ngrams` n-grams, in the order of the text."""
    hits: dict[int, dict[int, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    texts = normalise(column)
    for table in tables:
        found = shingles(texts, table.width)
        places = table.places(found.hashes)
        rows = found.offsets.searchsorted(places, side="right") - 1
        for place, row in zip(places.tolist(), rows.tolist(), strict=True):
            word = place - int(found.offsets[row])
            for item in table.items_with(found.hashes[place]).tolist():
                hits[row][item].append((word, word + table.width))
    spans = {}
    for row, by_item in hits.items():
        enough = {item: runs for item, runs in by_item.items() if len(runs) >= min_ngrams}
        if enough:
            spans[row] = _spans(column[row].as_py(), enough)
    return spans


def _spans(text: str, by_item: dict[int, list[tuple[int, int]]]) -> list[Span]:
    """Runs of words as spans of characters; runs of one item that touch or overlap are one."""
    words = word_places(text)
    spans = []
    for item, runs in by_item.items():
        merged: list[list[int]] = []
        for first, last in sorted(runs):
            if merged and first <= merged[-1][1]:
                merged[-1][1] = max(last, merged[-1][1])
                merged[-1][2] += 1
            else:
                merged.append([first, last, 1])
        spans += [Span(item, count, words[first][0], words[last - 1][1]) for first, last, count in merged]
    return sorted(spans, key=lambda span: (span.start, span.end, span.item))


def word_places(text: str) -> list[tuple[int, int]]:
    """(start, end) of every word; lower-casing maps a character to one character, so places stay."""
    return [word.span() for word in WORD.finditer(text)]


def without(text: str, spans: Iterable[Span]) -> str:
    """`text` with the spans cut out."""
    kept, at = [], 0
    for span in sorted(spans, key=lambda span: span.start):
        kept.append(text[at : max(at, span.start)])
        at = max(at, span.end)
    return "".join(kept) + text[at:]
