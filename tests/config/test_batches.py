import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.config.batches import Batches, BatchRampConfig
from llmctl.config.errors import ConfigError
from llmctl.config.load import build, parse_overrides
from llmctl.config.train import PretrainConfig, steps_of_epochs


def test_a_ramp_grows_in_equal_parts() -> None:
    batches = Batches(16, BatchRampConfig(start_rows=4, steps=6))
    assert [batches.rows_at(step) for step in range(8)] == [4, 4, 8, 8, 12, 12, 16, 16]
    assert [batches.first_of(step) for step in range(8)] == [0, 4, 8, 16, 24, 36, 48, 64]


@given(start=st.integers(1, 9), levels=st.integers(1, 12), steps=st.integers(1, 60), until=st.integers(0, 90))
def test_every_row_has_its_step(start: int, levels: int, steps: int, until: int) -> None:
    batches = Batches(start * levels, BatchRampConfig(start_rows=start, steps=steps))
    sizes = [batches.rows_at(step) for step in range(until)]
    assert batches.first_of(until) == sum(sizes)
    assert sizes == sorted(sizes)
    for step, size in enumerate(sizes):
        spans = batches.spans(step)
        rows = [number * unit + place for number, unit in spans for place in range(unit)]
        assert rows == list(range(batches.first_of(step), batches.first_of(step) + size))
    assert all(size % start == 0 and start <= size <= start * levels for size in sizes)


@given(st.floats(0.01, 9), st.integers(1, 50), st.integers(1, 4), st.integers(1, 6), st.integers(1, 9))
def test_epochs_become_the_fewest_steps_that_see_them(
    epochs: float, rows: int, start: int, levels: int, steps: int
) -> None:
    for batches in (Batches(start * levels), Batches(start * levels, BatchRampConfig(start_rows=start, steps=steps))):
        needed = steps_of_epochs(epochs, rows, batches)
        assert batches.first_of(needed) >= epochs * rows - 1e-6
        assert needed == 1 or batches.first_of(needed - 1) < epochs * rows


def test_without_a_ramp_a_step_is_one_batch() -> None:
    assert Batches(6).spans(5) == [(5, 6)]


def test_a_ramp_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch_rows \(16\) must be a multiple of batch_ramp.start_rows \(3\)"):
        build(PretrainConfig, [parse_overrides(["batch_ramp={start_rows: 3, steps: 10}"])])
