"""What answers are worth: closed forms, and the figures of others (posttrain-parity, section 2d)."""

import math

import pytest
import torch

from llmctl.objectives.advantages import (
    deviations,
    generalised_advantages,
    group_advantages,
    overlong_penalty,
    whitened,
)

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("given", "best", "others"),
    [
        ({}, 1.499700, -0.499900),  # TRL
        ({"epsilon": 1e-6}, 1.499997, -0.499999),  # verl
        ({"epsilon": 1e-9}, 1.5, -0.5),  # OpenRLHF
        ({"epsilon": 1e-8, "ddof": 0}, 1.732051, -0.577350),  # open-instruct, standard
        ({"norm": "none"}, 0.75, -0.25),  # open-instruct, centered
        ({"norm": "none", "baseline": "leave_one_out"}, 1.0, -0.333333),
    ],
)
def test_the_known_figures(given, best, others):
    found = group_advantages(REWARDS, **given)
    assert found[0].tolist() == pytest.approx([best, others, others, others], abs=2e-6)


def test_the_deviation_of_all_rewards():
    rewards = torch.tensor([[1.0, 0.0], [4.0, 2.0]], dtype=torch.float64)
    spread = math.sqrt(sum((value - 1.75) ** 2 for value in (1, 0, 4, 2)) / 3)
    found = group_advantages(rewards, norm="batch", epsilon=0.0)
    assert found.flatten().tolist() == pytest.approx([each / spread for each in (0.5, -0.5, 1.0, -1.0)])


def test_each_against_the_mean_of_the_others():
    rewards = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = group_advantages(rewards, baseline="leave_one_out", norm="none")
    for row, values in enumerate(rewards):
        for at, value in enumerate(values):
            others = torch.cat([values[:at], values[at + 1 :]]).mean()
            assert found[row, at].item() == pytest.approx((value - others).item())


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_what_is_missing_takes_no_part(baseline, norm):
    rewards = torch.tensor([[1.0, math.nan, 0.0, 0.5], [2.0, math.nan, math.nan, math.nan]], dtype=torch.float64)
    found = group_advantages(rewards, baseline=baseline, norm=norm)
    without = torch.tensor([[1.0, 0.0, 0.5]], dtype=torch.float64)
    if norm == "batch":  # the lone reward is among all
        scale = (torch.tensor([1.0, 0.0, 0.5, 2.0]).double().std() + 1e-4).item()
        expected = group_advantages(without, baseline=baseline, norm="none")[0] / scale
    else:
        expected = group_advantages(without, baseline=baseline, norm=norm)[0]
    torch.testing.assert_close(found[0, [0, 2, 3]], expected)
    assert found[0, 1] == 0
    assert (found[1] == 0).all()  # nothing to compare with


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_equal_rewards_teach_nothing(norm):
    rewards = torch.full((2, 3), 0.1, dtype=torch.float64)  # the mean of 0.1 is not exactly 0.1
    assert (group_advantages(rewards, norm=norm) == 0).all()
    assert (deviations(rewards) == 0).all()


def test_answers_near_the_longest_are_punished():
    found = overlong_penalty(torch.tensor([10, 80, 90, 100, 101]), 100, 20)
    assert found.tolist() == pytest.approx([0.0, 0.0, -0.5, -1.0, -1.0])
    assert (overlong_penalty(torch.tensor([5]), 10, 0) == 0).all()


def test_generalised_advantages_are_their_sum():
    generator = torch.Generator().manual_seed(1)
    rewards, values = (torch.randn(2, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    mask = torch.ones(2, 6, dtype=torch.bool)
    found = generalised_advantages(rewards, values, mask, discount=0.9, decay=0.8)
    for row in range(2):
        following = [*values[row, 1:].tolist(), 0.0]
        deltas = [rewards[row, t].item() + 0.9 * following[t] - values[row, t].item() for t in range(6)]
        for t in range(6):
            expected = sum((0.9 * 0.8) ** k * deltas[t + k] for k in range(6 - t))
            assert found[row, t].item() == pytest.approx(expected)


def test_masked_places_are_stepped_over():
    rewards = torch.tensor([[0.5, 9.0, 0.0, 1.0, 9.0]], dtype=torch.float64)
    values = torch.tensor([[0.1, 9.0, 0.2, 0.3, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, False, True, True, False]])
    found = generalised_advantages(rewards, values, mask, discount=0.9, decay=0.8)
    kept = mask[0]
    whole = torch.ones(1, 3, dtype=torch.bool)
    closed = generalised_advantages(rewards[:, kept], values[:, kept], whole, discount=0.9, decay=0.8)
    torch.testing.assert_close(found[:, kept], closed)
    assert (found[:, ~kept] == 0).all()


def test_with_full_decay_an_advantage_is_what_comes_less_what_was_expected():
    rewards = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    values = torch.tensor([[0.4, 0.5, 0.6]], dtype=torch.float64)
    found = generalised_advantages(rewards, values, torch.ones(1, 3, dtype=torch.bool), decay=1.0)
    torch.testing.assert_close(found, 1.0 - values)


def test_whitening():
    values = torch.tensor([[1.0, 2.0, 50.0], [3.0, 6.0, 50.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, False]])
    found = whitened(values, mask)
    kept = found[mask]
    assert kept.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert kept.std(correction=1).item() == pytest.approx(1.0, rel=1e-6)
    assert (found[~mask] == 0).all()
    assert whitened(values, mask, shift=False)[mask].mean().item() == pytest.approx(3.0)
    assert (whitened(values, torch.zeros_like(mask)) == 0).all()
