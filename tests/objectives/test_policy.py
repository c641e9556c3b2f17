"""Losses of a policy: closed forms, gradients against finite differences, what they are divided by."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.config.policy import PRESETS, ClipConfig, PolicyConfig
from llmctl.objectives.policy import (
    Tokens,
    corrections,
    divergences,
    log_ratios,
    policy_losses,
    token_weights,
    value_losses,
)


def tokens(away, advantages, answers=None):
    """Tokens whose log-ratios are `away`."""
    old = torch.linspace(-2.0, -1.0, len(away), dtype=torch.float64)
    which = torch.zeros(len(away), dtype=torch.int64) if answers is None else torch.tensor(answers)
    away, advantages = (torch.tensor(values, dtype=torch.float64) for values in (away, advantages))
    return Tokens(old + away, old, advantages, which, int(which.max()) + 1)


def test_ratios_of_tokens_answers_and_whole_answers():
    given_ = tokens([0.1, -0.2, 0.3, 0.5], [1.0] * 4, answers=[0, 0, 0, 1])
    assert log_ratios(given_, "token").tolist() == pytest.approx([0.1, -0.2, 0.3, 0.5])
    assert log_ratios(given_, "sequence").exp().tolist() == pytest.approx([1.068939] * 3 + [math.exp(0.5)], abs=1e-6)
    assert log_ratios(given_, "trajectory").exp().tolist() == pytest.approx([1.221403] * 3 + [math.exp(0.5)], abs=1e-6)


def loss_of(ratio, advantage, **config):
    lost = policy_losses(tokens([math.log(ratio)], [advantage]), PolicyConfig.model_validate(config))
    return lost.losses.item(), bool(lost.clipped.item())


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.1, 2.0, -2.2, False),
        (1.5, 2.0, -2.56, True),  # 1 + high
        (0.5, 2.0, -1.0, False),  # the smaller one counts
        (0.5, -2.0, 1.8, True),  # 1 - low
        (1.5, -2.0, 3.0, False),
        (5.0, -2.0, 6.0, True),  # dual
        (5.0, 2.0, -2.56, True),
    ],
)
def test_clipping(ratio, advantage, loss, clipped):
    found = loss_of(ratio, advantage, clip={"low": 0.1, "high": 0.28, "dual": 3.0})
    assert found == (pytest.approx(loss), clipped)


def test_without_a_dual_clip_a_bad_answer_weighs_without_bound():
    assert loss_of(5.0, -2.0) == (pytest.approx(10.0), False)


def test_cispo_weighs_log_p_by_a_ratio_that_is_cut_above():
    given_ = tokens([math.log(9.0), math.log(0.1)], [2.0, -1.0])
    leaf = given_.logps.clone().requires_grad_()
    config = PolicyConfig(surrogate="cispo", clip=ClipConfig(high=4.0))
    lost = policy_losses(Tokens(leaf, given_.old, given_.advantages, given_.answers, 1), config)
    assert lost.losses.tolist() == pytest.approx([-5.0 * 2.0 * leaf[0].item(), 0.1 * leaf[1].item()])
    lost.losses.sum().backward()
    assert leaf.grad.tolist() == pytest.approx([-10.0, 0.1])
    assert lost.clipped.tolist() == [True, False]


def test_estimators_of_the_divergence():
    away = torch.tensor([0.2, -0.5, 0.0], dtype=torch.float64)
    reference = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
    found = {name: divergences(reference + away, reference, name).tolist() for name in ("k1", "k2", "k3")}
    assert found["k1"] == pytest.approx([0.2, -0.5, 0.0])
    assert found["k2"] == pytest.approx([0.02, 0.125, 0.0])
    assert found["k3"] == pytest.approx([0.018731, 0.148721, 0.0], abs=1e-6)


def test_k1_and_k3_are_unbiased():
    logits, others = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    p, q = logits.log_softmax(0), others.log_softmax(0)
    exact = (p.exp() * (p - q)).sum().item()
    for name in ("k1", "k3"):
        assert (p.exp() * divergences(p, q, name)).sum().item() == pytest.approx(exact)


LENGTHS = torch.tensor([2, 4])
LOSSES = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
OF = torch.tensor([0, 0, 1, 1, 1, 1])


def aggregated(kind, counted=(True, True), **given_):
    sizes = {"longest": 8, "rollout_tokens": 6.0, **given_}
    return (LOSSES * token_weights(LENGTHS, torch.tensor(counted), kind, **sizes)[OF]).sum().item()


@pytest.mark.parametrize(
    ("kind", "value"), [("dapo", 3.5), ("bnpo", 3.5), ("grpo", 3.0), ("seq_sum", 10.5), ("dr_grpo", 1.3125)]
)
def test_aggregations(kind, value):
    assert aggregated(kind) == pytest.approx(value)


def test_dapo_divides_by_the_tokens_of_the_rollout_and_bnpo_by_those_of_the_step():
    assert aggregated("dapo", rollout_tokens=12.0) == pytest.approx(21 / 12)
    assert aggregated("bnpo", rollout_tokens=12.0) == pytest.approx(3.5)


@pytest.mark.parametrize(
    ("kind", "value"), [("bnpo", 18 / 4), ("grpo", 4.5 / 2), ("seq_sum", 9.0), ("dr_grpo", 18 / 16)]
)
def test_an_answer_that_does_not_count_is_among_the_answers_and_not_among_the_tokens(kind, value):
    assert aggregated(kind, counted=(False, True)) == pytest.approx(value)


def test_corrections():
    old = torch.tensor([-1.0, -2.0, -1.0], dtype=torch.float64)
    sampler = torch.tensor([-1.1, -3.5, -0.5], dtype=torch.float64)
    which = torch.tensor([0, 1, 1])
    found = {kind: corrections(old, sampler, which, 2, kind, 2.0).tolist() for kind in ("none", "token", "sequence")}
    assert found["none"] == [1.0, 1.0, 1.0]
    assert found["token"] == pytest.approx([math.exp(0.1), 2.0, math.exp(-0.5)])
    assert found["sequence"] == pytest.approx([math.exp(0.1), 0.0, 0.0])


def test_value_losses_take_the_larger_error():
    values, old, returns = (torch.tensor(each, dtype=torch.float64) for each in ([1.0, 0.3], [0.0, 0.2], [2.0, 0.0]))
    assert value_losses(values, old, returns, 0.2).tolist() == pytest.approx([(2 - 0.2) ** 2 / 2, 0.3**2 / 2])


@settings(max_examples=40, deadline=None)
@given(
    preset=st.sampled_from(sorted(PRESETS)),
    seed=st.integers(0, 10_000),
    dual=st.sampled_from([None, 3.0]),
    ratio=st.sampled_from(["token", "sequence", "trajectory"]),
)
def test_gradients_are_finite_differences(preset, seed, dual, ratio):
    """In fp64, of a whole step's loss with a divergence, away from the corners of the minimum."""
    chosen = PRESETS[preset].get("policy", {})
    clip = {**chosen.get("clip", {}), "dual": None if preset == "cispo" else dual}
    policy = PolicyConfig.model_validate({**chosen, "clip": clip, "ratio": ratio})
    generator = torch.Generator().manual_seed(seed)
    which = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    old, away, reference = (torch.randn(9, dtype=torch.float64, generator=generator) * scale for scale in (1, 0.4, 1))
    advantages = torch.randn(3, dtype=torch.float64, generator=generator)[which]
    lengths, counted = torch.bincount(which), torch.tensor([True, False, True])
    weights = token_weights(lengths, counted, policy.loss_agg, longest=6, rollout_tokens=9.0)[which]
    held = policy_losses(Tokens(old + away, old, advantages, which, 3), policy).ratios.clamp(max=1 + policy.clip.high)

    def value(logps):
        given_ = Tokens(logps, old, advantages, which, 3)
        if policy.surrogate == "cispo":  # its ratio is a number: differences are taken of what it weighs
            losses = -held * advantages * logps
        else:
            losses = policy_losses(given_, policy).losses
        return (weights * (losses + 0.1 * divergences(logps, reference, policy.kl.estimator))).sum()

    leaf = (old + away).requires_grad_()
    lost = policy_losses(Tokens(leaf, old, advantages, which, 3), policy).losses
    (weights * (lost + 0.1 * divergences(leaf, reference, policy.kl.estimator))).sum().backward()
    step = 1e-6
    for at in range(9):
        bump = torch.zeros(9, dtype=torch.float64)
        bump[at] = step
        slopes = [(value((old + away) + sign * bump) - value(old + away)).item() * sign / step for sign in (1, -1)]
        if abs(slopes[0] - slopes[1]) < 1e-4:  # else a corner lies between
            assert leaf.grad[at].item() == pytest.approx(sum(slopes) / 2, abs=1e-6)
