"""The order of rows: permutations, and a position that is the step alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.tokens.order import rows_of_step


def stream(seed: int, batch_rows: int, count: int, steps: int) -> np.ndarray:
    return np.concatenate([rows_of_step(seed, step, batch_rows, count) for step in range(steps)])


@settings(deadline=None)
@given(seed=st.integers(-5, 2**70), count=st.integers(1, 300), batch_rows=st.integers(20, 350))
def test_each_epoch_is_a_permutation(seed: int, count: int, batch_rows: int) -> None:
    rows = stream(seed, batch_rows, count, -(-3 * count // batch_rows))
    for epoch in range(3):
        assert sorted(rows[epoch * count : (epoch + 1) * count]) == list(range(count))


@settings(deadline=None)
@given(count=st.integers(1, 10**12), batch_rows=st.integers(1, 64), step=st.integers(0, 10**6), seed=st.integers(0, 99))
def test_a_batch_is_a_function_of_the_step(count: int, batch_rows: int, step: int, seed: int) -> None:
    rows = rows_of_step(seed, step, batch_rows, count)
    assert rows.dtype == np.int64
    assert rows.shape == (batch_rows,)
    assert ((rows >= 0) & (rows < count)).all()
    singles = [rows_of_step(seed, step * batch_rows + place, 1, count)[0] for place in range(batch_rows)]
    assert rows.tolist() == singles  # so any split among ranks and micro-batches sees the same rows


def test_epochs_and_seeds_differ() -> None:
    first, second = rows_of_step(0, 0, 1000, 1000), rows_of_step(0, 1, 1000, 1000)
    other = rows_of_step(1, 0, 1000, 1000)
    assert (first != second).mean() > 0.99
    assert (first != other).mean() > 0.99


def test_the_order_looks_random() -> None:
    rows = rows_of_step(3, 0, 20_000, 20_000)
    places = np.arange(rows.size)
    assert abs(np.corrcoef(places, rows)[0, 1]) < 0.03
    assert abs(np.corrcoef(rows[1:], rows[:-1])[0, 1]) < 0.03
    assert abs((np.diff(rows) == 1).sum()) < 8
    halves = [np.mean(rows[start : start + 1000] < 10_000) for start in range(0, 20_000, 1000)]
    assert max(abs(half - 0.5) for half in halves) < 0.08


def test_the_order_never_changes() -> None:
    assert rows_of_step(0, 0, 8, 100).tolist() == [30, 92, 87, 55, 14, 39, 91, 50]


def test_nonsense_is_refused() -> None:
    for arguments in ((0, 0, 8, 0), (0, 0, 0, 8), (0, -1, 8, 8)):
        with pytest.raises(ValueError, match="need count"):
            rows_of_step(*arguments)
