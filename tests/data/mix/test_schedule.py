from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.mix.schedule import Supply, interleave, shares


def supply(sizes: list[int], limit: int | None = None) -> Supply:
    return Supply(
        lambda _epoch: np.arange(len(sizes)), np.array(sizes, dtype=np.int64), len(sizes) if limit is None else limit
    )


def never(_source: int, _document: int) -> bool:
    return False


WEIGHTS = st.lists(st.floats(0.01, 100, allow_nan=False), min_size=1, max_size=8)


@given(WEIGHTS, st.integers(1, 400))
def test_every_prefix_has_the_shares_to_within_one_document(weights: list[float], total: int) -> None:
    share = [weight / sum(weights) for weight in weights]
    turns = interleave([supply([1], limit=total) for _ in share], share, never).source[:total]
    assert len(turns) >= 1
    counts = np.cumsum(turns[:, None] == np.arange(len(share)), axis=0)  # [prefix, source]
    wanted = np.arange(1, len(turns) + 1)[:, None] * np.array(share)
    assert np.abs(counts - wanted).max() <= 1 + 1e-6


@given(st.data(), WEIGHTS)
def test_sizes_are_shared_to_within_one_document(data: st.DataObject, weights: list[float]) -> None:
    share = [weight / sum(weights) for weight in weights]
    sizes = [data.draw(st.lists(st.integers(0, 1000), min_size=1, max_size=40)) for _ in share]
    supplies = [supply(own, limit=200) for own in sizes]
    turns = interleave(supplies, share, never).source
    taken = [iter([own[n] for n in one.documents()]) for own, one in zip(sizes, supplies, strict=True)]
    size = np.array([next(taken[source]) for source in turns.tolist()])
    used = np.cumsum((turns[:, None] == np.arange(len(share))) * size[:, None], axis=0)
    ahead = used - np.cumsum(size)[:, None] * np.array(share)
    largest = max(map(max, sizes))
    assert (ahead <= np.array([max(own) for own in sizes]) + 1e-3).all(), "at most one of its own ahead"
    assert (ahead >= -largest - 1e-3).all(), "at most the largest document behind"


def test_the_schedule_ends_where_a_source_has_nothing_left() -> None:
    turns = interleave([supply([1] * 9), supply([1] * 3)], [0.5, 0.5], never)
    assert np.bincount(turns.source).tolist() == [3, 3]
    assert turns.short is not None
    whole = interleave([supply([1] * 9), supply([1] * 3)], [0.75, 0.25], never)
    assert np.bincount(whole.source).tolist() == [9, 3]


def test_others_go_on_where_they_may() -> None:
    turns = interleave([supply([5] * 4), supply([5]), supply([])], [0.4, 0.3, 0.3], never, go_on=True)
    assert sorted(turns.source.tolist()) == [0, 0, 0, 0, 1]


def test_an_epoch_begins_where_the_last_one_ended() -> None:
    epochs = [np.array([2, 0, 1]), np.array([1, 2, 0])]
    one = Supply(lambda epoch: epochs[epoch], np.array([1, 1, 1]), limit=5)
    interleave([one], [1.0], never)
    assert one.documents().tolist() == [2, 0, 1, 1, 2]
    assert one.is_empty


def test_the_total_ends_it() -> None:
    seen: list[tuple[int, int]] = []

    def enough(source: int, document: int) -> bool:
        seen.append((source, document))
        return len(seen) == 4

    turns = interleave([supply([1] * 9), supply([1] * 9)], [0.5, 0.5], enough)
    assert len(turns.source) == 4
    assert turns.short is None
    assert sorted(seen) == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("weights", "temperature", "expected"),
    [
        ({"a": 7, "b": 3}, 1.0, {"a": 0.7, "b": 0.3}),
        ({}, 1.0, {"a": 0.9, "b": 0.1}),
        ({}, 2.0, {"a": 0.75, "b": 0.25}),  # sqrt(900) : sqrt(100) = 30 : 10
        ({}, 1000.0, {"a": 0.5005, "b": 0.4995}),
    ],
)
def test_shares(weights: dict[str, float], temperature: float, expected: dict[str, float]) -> None:
    found = shares({"a": 900, "b": 100}, weights, temperature)
    assert found == pytest.approx(expected, abs=1e-4)
