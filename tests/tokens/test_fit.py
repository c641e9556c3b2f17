"""Packing: every token exactly once, rows within bounds, little padding, quickly."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.tokens.fit import MAX_PADDING, Ints, Layout, fit, fit_whole


def check(tokens: Ints, seq_len: int) -> Layout:
    """Assert everything that a layout promises."""
    layout = fit(tokens, seq_len)
    used = np.add.reduceat(layout.length, layout.first[:-1]) if layout.rows else np.empty(0)
    assert layout.first[0] == 0
    assert layout.first[-1] == layout.document.size
    assert (np.diff(layout.first) > 0).all()
    assert (layout.length > 0).all()
    assert (used <= seq_len).all()
    order = np.lexsort((layout.start, layout.document))
    document, start, end = (a[order] for a in (layout.document, layout.start, layout.start + layout.length))
    begins = np.concatenate(([True], document[1:] != document[:-1])) if document.size else np.empty(0, dtype=bool)
    assert (start[begins] == 0).all()
    assert (start[~begins] == end[:-1][~begins[1:]]).all()  # each slice begins where the one before it ends
    assert (end[np.append(begins[1:], True)] == tokens[tokens > 0]).all() if document.size else not tokens.any()
    padding = layout.rows * seq_len - int(tokens.sum())
    assert padding < max(MAX_PADDING * layout.rows * seq_len, seq_len)
    return layout


@settings(deadline=None, max_examples=300)
@given(tokens=st.lists(st.integers(1, 90), min_size=1, max_size=200), seq_len=st.integers(2, 40))
def test_every_token_is_in_one_row(tokens: list[int], seq_len: int) -> None:
    check(np.array(tokens), seq_len)


@pytest.mark.parametrize("length", [513, 600, 683, 1023, 1025, 1500])
def test_lengths_that_fit_badly_are_cut_into_the_gaps(length: int) -> None:
    layout = check(np.full(2000, length), 1024)
    assert layout.padding(1024) < MAX_PADDING


def test_what_fits_is_not_cut() -> None:
    layout = check(np.array([4, 6, 3, 7, 5, 5]), 10)
    assert layout.rows == 3
    assert layout.padding(10) == 0.0
    rows = [layout.document[a:b].tolist() for a, b in zip(layout.first, layout.first[1:], strict=False)]
    assert rows == [[2, 3], [0, 1], [4, 5]]  # opened by the document of 7, of 6, of 5 tokens


def test_a_long_document_is_whole_rows_and_a_rest() -> None:
    layout = check(np.array([25, 5]), 10)
    assert layout.start.tolist() == [0, 10, 20, 0]
    assert layout.length.tolist() == [10, 10, 5, 5]
    assert layout.document.tolist() == [0, 0, 0, 1]
    assert layout.first.tolist() == [0, 1, 2, 4]


def test_best_fit_takes_the_fullest_row() -> None:
    # 9 opens row 0 (room 1), 6 row 1 (room 4), 5 row 2 (room 5); 4 fits rows 1 and 2: the fuller is 1.
    layout = fit(np.array([9, 6, 5, 4, 5, 1]), 10)
    assert [layout.document[a:b].tolist() for a, b in zip(layout.first, layout.first[1:], strict=False)] == [
        [0, 5],
        [1, 3],
        [2, 4],
    ]


def test_a_single_short_document_is_one_row() -> None:
    layout = check(np.array([3]), 1024)
    assert layout.rows == 1
    assert fit(np.empty(0, dtype=np.int64), 8).rows == 0


@pytest.mark.parametrize("seq_len", [256, 4096])
def test_a_million_documents_in_seconds(seq_len: int) -> None:
    tokens = np.clip(np.random.default_rng(0).lognormal(5.5, 1.2, 1_000_000), 2, 10**6).astype(np.int64)
    started = time.perf_counter()
    layout = fit(tokens, seq_len)
    assert time.perf_counter() - started < 30
    assert int(layout.length.sum()) == int(tokens.sum())
    assert layout.padding(seq_len) < 0.001


@given(st.lists(st.integers(1, 20), max_size=40), st.integers(20, 50))
def test_whole_documents_are_not_cut_and_no_row_overflows(lengths: list[int], capacity: int) -> None:
    layout = fit_whole(np.array(lengths, dtype=np.int64), capacity)
    rows = [layout.documents_of(row).tolist() for row in range(layout.rows)]
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert layout.length.tolist() == [lengths[item] for item in layout.document]
    assert all(sum(lengths[item] for item in row) <= capacity for row in rows)
    if lengths:  # best fit never leaves two rows that would fit into one
        sizes = sorted(sum(lengths[item] for item in row) for row in rows)
        assert len(sizes) == 1 or sizes[0] + sizes[1] > capacity


def test_a_whole_document_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="9 tokens does not fit into a row of 8"):
        fit_whole(np.array([3, 9]), 8)
