from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.stats.ngrams import NgramCounter
from llmctl.data.stats.sketch import HeavyHitters
from llmctl.data.stats.values import Values

STREAM = st.lists(st.lists(st.integers(0, 40), max_size=60), max_size=12)


def fill(batches: list[list[int]], capacity: int) -> HeavyHitters:
    found = HeavyHitters(capacity)
    for batch in batches:
        keys, counts = np.unique(np.array(batch, dtype=np.uint64), return_counts=True)
        found.add(keys, counts, lambda places, keys=keys: [f"item {key}" for key in keys[places].tolist()])
    return found


@given(STREAM, STREAM, st.integers(1, 50))
def test_counts_are_too_low_by_at_most_the_error(one: list, other: list, capacity: int) -> None:
    truth = Counter(f"item {key}" for batch in one + other for key in batch)
    found = fill(one, capacity)
    found.merge(fill(other, capacity))
    assert found.items == truth.total()
    assert len(found.keys) <= capacity
    assert found.error <= truth.total() / (capacity + 1)
    kept = dict(found.top(capacity))
    for name, count in kept.items():
        assert count <= truth[name] <= count + found.error
    for name, count in truth.items():
        assert name in kept or count <= found.error
    if len(truth) <= capacity:
        assert found.error == 0
        assert kept == truth


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=80), st.integers(0, 80))
def test_quantiles_are_exact(numbers: list[int], cut: int) -> None:
    values = Values(np.array(numbers[:cut], dtype=np.int64))
    values.merge(Values(np.array(numbers[cut:], dtype=np.int64)))
    summary = values.summary()
    assert (summary["min"], summary["max"], values.total, values.count) == (
        min(numbers), max(numbers), sum(numbers), len(numbers),
    )  # fmt: skip
    for name, share in (("p5", 0.05), ("p50", 0.5), ("p95", 0.95)):
        assert summary[name] == np.quantile(numbers, share, method="inverted_cdf")
    histogram = values.histogram()
    assert sum(one["count"] for one in histogram) == len(numbers)
    for one in histogram:
        assert one["count"] == sum(one["from"] <= number < one["below"] for number in numbers)


def test_no_numbers_have_no_summary() -> None:
    assert (Values().summary(), Values().histogram(), Values().total) == ({}, [], 0)


@given(st.lists(st.text("ab ,", max_size=12), max_size=8), st.integers(1, 3))
def test_ngrams_are_those_of_each_text(texts: list[str], length: int) -> None:
    counter = NgramCounter([length], 1000)
    half = len(texts) // 2
    lengths = [*counter.add(texts[:half]).tolist(), *counter.add(texts[half:]).tolist()]
    words = [text.replace(",", " ").split() for text in texts]
    assert lengths == [len(own) for own in words]
    expected = Counter(" ".join(own[n : n + length]) for own in words for n in range(len(own) - length + 1))
    assert dict(counter.found[length].top(1000)) == expected


def test_words_are_case_folded() -> None:
    counter = NgramCounter([2], 10)
    counter.add(["The END, the end of it"])
    assert counter.found[2].top(1) == [("the end", 2)]


@pytest.mark.parametrize("capacity", [3, 1000])
def test_a_frequent_ngram_is_found_among_many(capacity: int) -> None:
    counter = NgramCounter([2], capacity)
    for start in range(0, 2000, 100):
        counter.add([f"rare{n} and so again and so rarer{n}" for n in range(start, start + 100)])
    assert counter.found[2].top(1)[0][0] == "and so"
