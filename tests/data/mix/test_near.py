from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.data.dedup.kernel import Hashes
from llmctl.data.mix.near import HeldoutIndex, jaccard, prefix_length, shingle_sets

SETS = st.lists(st.integers(0, 30), min_size=1, max_size=20, unique=True)


def as_set(values: list[int]) -> Hashes:
    return np.array(sorted(values), dtype=np.uint64)


@settings(max_examples=200)
@given(st.lists(SETS, max_size=8), st.lists(SETS, min_size=1, max_size=8), st.sampled_from([0.3, 0.5, 0.75, 0.8, 1.0]))
def test_it_finds_what_comparing_all_pairs_finds(
    tmp_path_factory: pytest.TempPathFactory, heldout: list[list[int]], others: list[list[int]], threshold: float
) -> None:
    held = [as_set(values) for values in heldout]
    index = HeldoutIndex.build(held, threshold, tmp_path_factory.mktemp("index"))
    for values in others:
        one = as_set(values)
        assert index.has_near(one) == any(jaccard(one, other) >= threshold for other in held)


def test_a_threshold_that_floats_cannot_hold() -> None:
    # 0.8 * 5 is 4.000000000000001 with some libraries' rounding: one shingle too few would miss the pair
    assert prefix_length(5, 0.8) == 2
    assert prefix_length(10, 0.7) == 4
    assert prefix_length(7, 1.0) == 1


def test_an_index_is_read_back(tmp_path: Path) -> None:
    built = HeldoutIndex.build([as_set([1, 2, 3, 4])], 0.8, tmp_path)
    again = HeldoutIndex(tmp_path, 0.8)
    for index in (built, again):
        assert index.has_near(as_set([1, 2, 3, 4]))
        assert not index.has_near(as_set([1, 2, 3, 9]))


def test_texts_without_words_are_compared_as_they_are() -> None:
    one, same, other, empty = shingle_sets(["... !", "... !", "???", ""], 5)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert len(empty) == 1
