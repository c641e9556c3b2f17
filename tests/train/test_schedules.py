import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.config.schedules import ConstantConfig, CosineConfig, InverseSqrtConfig, LinearConfig, WsdConfig
from llmctl.train.schedules import rate_factor

COSINE = CosineConfig(warmup_steps=4, final_fraction=0.1)
WSD = WsdConfig(warmup_steps=4, decay_fraction=0.25, final_fraction=0.0)


@pytest.mark.parametrize("schedule", [COSINE, WSD])
def test_warm_up_is_linear_and_starts_above_zero(schedule):
    assert [rate_factor(schedule, step, 24) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_closed_form():
    assert rate_factor(COSINE, 14, 24) == pytest.approx(0.1 + 0.9 * 0.5)
    assert rate_factor(COSINE, 23, 24) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 19 / 20)))


def test_wsd_closed_form():
    # 24 steps: 4 of warm-up, 14 flat, 6 of decay.
    assert {rate_factor(WSD, step, 24) for step in range(4, 19)} == {1.0}
    assert rate_factor(WSD, 21, 24) == pytest.approx(1 - math.sqrt(0.5))
    assert rate_factor(WSD, 23, 24) == pytest.approx(1 - math.sqrt(5 / 6))


def test_step_outside_the_run_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 24\), got 24"):
        rate_factor(COSINE, 24, 24)


@given(
    steps=st.integers(1, 300),
    warmup=st.floats(0, 0.99),
    decay=st.floats(0.01, 1),
    final=st.floats(0, 1),
    wsd=st.booleans(),
)
def test_rises_then_never_rises_again(steps, warmup, decay, final, wsd):
    given_ = {"warmup_fraction": warmup, "final_fraction": final}
    schedule = WsdConfig(**given_, decay_fraction=decay) if wsd else CosineConfig(**given_)
    factors = [rate_factor(schedule, step, steps) for step in range(steps)]
    assert factors[0] > 0
    assert max(factors) == pytest.approx(1.0)
    peak = factors.index(max(factors))
    assert all(a < b for a, b in itertools.pairwise(factors[: peak + 1]))
    assert all(a >= b for a, b in itertools.pairwise(factors[peak:]))
    assert min(factors[peak:]) >= final - 1e-12


def test_linear_closed_form():
    linear = LinearConfig(warmup_steps=4, final_fraction=0.2)
    assert rate_factor(linear, 4, 24) == 1.0
    assert rate_factor(linear, 14, 24) == pytest.approx(0.6)
    assert rate_factor(linear, 23, 24) == pytest.approx(0.2 + 0.8 / 20)


def test_inverse_square_root_closed_form():
    schedule = InverseSqrtConfig(warmup_steps=4, final_fraction=0.45)
    assert [rate_factor(schedule, step, 24) for step in (3, 15, 23)] == [1.0, 0.5, 0.45]
    assert rate_factor(InverseSqrtConfig(warmup_steps=0), 3, 24) == 0.5


def test_constant_is_constant():
    schedule = ConstantConfig(warmup_steps=2)
    assert [rate_factor(schedule, step, 5) for step in range(5)] == [0.5, 1.0, 1.0, 1.0, 1.0]
