"""Preference losses against closed forms, another implementation's figures, and finite differences."""

import math

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from llmctl.config.preference import KtoConfig, PreferenceLossConfig, needs_reference
from llmctl.objectives.preference import (
    Answers,
    divergence_score,
    kto_losses,
    preference_losses,
    reward_losses,
)

# LLaMA-Factory's own fixture of four pairs; the means below were computed from each formula in float64.
CHOSEN, REJECTED = [-3, -2.5, -4, -1.5], [-5, -3.5, -6, -2.5]
REFERENCE_CHOSEN, REFERENCE_REJECTED = [-2.8, -2.3, -3.8, -1.4], [-3.2, -2.7, -4.2, -1.8]
GOLDEN = [
    ({"name": "sigmoid"}, 0.639970),
    ({"name": "sigmoid", "label_smoothing": 0.1}, 0.650970),
    ({"name": "robust", "label_smoothing": 0.1}, 0.626220),
    ({"name": "hinge"}, 0.890000),
    ({"name": "ipo"}, 15.460000),
    ({"name": "cpo", "alpha": 0}, 0.621268),
]
EVERY = [
    {"name": "sigmoid"},
    {"name": "sigmoid", "label_smoothing": 0.2, "divergence": "js"},
    {"name": "sigmoid", "divergence": "forward_kl"},
    {"name": "sigmoid", "divergence": "alpha", "alpha": 0.3},
    {"name": "robust"},
    {"name": "hinge", "beta": 0.2},
    {"name": "ipo"},
    {"name": "ipo", "average": True},
    {"name": "sigmoid_norm"},
    {"name": "simpo"},
    {"name": "cpo"},
    {"name": "orpo"},
    {"name": "rrhf"},
]


def loss_of(given):
    return TypeAdapter(PreferenceLossConfig).validate_python(given)


def doubles(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pairs(chosen=None, rejected=None, tokens=(1, 1, 1, 1)):
    counts = doubles(tokens)
    return (
        Answers(doubles(CHOSEN) if chosen is None else chosen, counts, doubles(REFERENCE_CHOSEN)),
        Answers(doubles(REJECTED) if rejected is None else rejected, counts + 2, doubles(REFERENCE_REJECTED)),
    )


@pytest.mark.parametrize(("given", "mean"), GOLDEN)
def test_means_over_a_known_batch(given: dict, mean: float) -> None:
    assert preference_losses(*pairs(), loss_of(given)).mean().item() == pytest.approx(mean, abs=5e-7)


def test_a_sum_of_logps_of_the_orpo_fixture() -> None:
    chosen, rejected = (Answers(doubles(values), torch.ones(4)) for values in (CHOSEN, REJECTED))
    term = preference_losses(chosen, rejected, loss_of({"name": "orpo", "beta": 1})) + chosen.mean_logps
    assert term.mean().item() == pytest.approx(0.204152, abs=5e-7)


@pytest.mark.parametrize("given", EVERY, ids=lambda given: "-".join(map(str, given.values())))
def test_gradients_equal_finite_differences(given: dict) -> None:
    config = loss_of(given)

    def total(chosen: Tensor, rejected: Tensor) -> Tensor:
        return preference_losses(*pairs(chosen, rejected, (4, 1, 7, 2)), config).sum()

    start = [doubles(values).requires_grad_() for values in (CHOSEN, REJECTED)]
    assert torch.autograd.gradcheck(total, start, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("given", EVERY, ids=lambda given: "-".join(map(str, given.values())))
def test_a_gradient_step_widens_the_gap(given: dict) -> None:
    chosen, rejected = (doubles(values).requires_grad_() for values in ([-4.0] * 4, [-4.0] * 4))
    preference_losses(*pairs(chosen, rejected), loss_of(given)).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert (chosen.grad < 0).all()  # descent raises what was chosen
    if given["name"] != "rrhf":  # whose hinge is at its end where the longer answer is the less likely one
        assert (rejected.grad >= 0).all()


def test_where_policy_and_reference_agree_dpo_is_the_log_of_two() -> None:
    same = [Answers(doubles([-5.0]), doubles([4.0]), doubles([-5.0])) for _ in range(2)]
    for name in ("sigmoid", "robust", "sigmoid_norm"):
        assert preference_losses(*same, loss_of({"name": name})).item() == pytest.approx(math.log(2))
    assert preference_losses(*same, loss_of({"name": "hinge"})).item() == 1
    assert preference_losses(*same, loss_of({"name": "ipo", "beta": 0.25})).item() == 4


def test_lengths_matter_where_the_formula_says_so() -> None:
    chosen = Answers(doubles([-6.0]), doubles([3.0]), doubles([-9.0]))  # a log-ratio of 3: 1 a token
    rejected = Answers(doubles([-8.0]), doubles([2.0]), doubles([-4.0]))  # -4: -2 a token
    ipo = preference_losses(chosen, rejected, loss_of({"name": "ipo", "beta": 0.5}))
    averaged = preference_losses(chosen, rejected, loss_of({"name": "ipo", "beta": 0.5, "average": True}))
    assert (ipo.item(), averaged.item()) == ((7 - 1) ** 2, (3 - 1) ** 2)
    normed = preference_losses(chosen, rejected, loss_of({"name": "sigmoid_norm", "beta": 2}))
    assert normed.item() == pytest.approx(math.log1p(math.exp(-6)))
    simpo = preference_losses(chosen, rejected, loss_of({"name": "simpo", "beta": 2, "gamma": 0.5}))
    assert simpo.item() == pytest.approx(math.log1p(math.exp(-(2 * (-2 + 4) - 0.5))))
    cpo = preference_losses(chosen, rejected, loss_of({"name": "cpo", "beta": 0.5, "alpha": 3}))
    assert cpo.item() == pytest.approx(math.log1p(math.exp(-0.5 * 2)) + 3 * 2)
    rrhf = preference_losses(rejected, chosen, loss_of({"name": "rrhf", "alpha": 0.5}))
    assert rrhf.item() == pytest.approx((-2 + 4) + 0.5 * 8)


def test_odds_near_certainty_keep_their_digits() -> None:
    sure = Answers(doubles([-1e-12]), doubles([1.0]))
    unsure = Answers(doubles([-700.0]), doubles([1.0]))
    config = loss_of({"name": "orpo", "beta": 1})
    backwards = preference_losses(unsure, sure, config) + unsure.mean_logps
    assert backwards.item() == pytest.approx(700 + -math.log(1e-12), rel=1e-9)
    assert preference_losses(sure, unsure, config).isfinite().all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("reverse_kl", 0.7), ("forward_kl", -math.exp(-0.7)), ("js", -math.log1p(math.exp(-0.7))), ("alpha", None)],
)
def test_divergences(name: str, expected: float | None) -> None:
    wanted = math.exp(-0.6 * 0.7) / -0.6 if expected is None else expected
    assert divergence_score(doubles([0.7]), name, 0.4).item() == pytest.approx(wanted)


def test_without_a_reference_only_losses_that_need_none_are_computed() -> None:
    sides = [Answers(doubles([-1.0]), doubles([1.0]))] * 2
    for given in EVERY:
        config = loss_of(given)
        if needs_reference(config):
            with pytest.raises(ValueError, match="compares with a reference"):
                preference_losses(*sides, config)
        else:
            assert preference_losses(*sides, config).isfinite().all()


def test_kto_by_hand() -> None:
    answers = Answers(doubles([-2.0, -2.0]).requires_grad_(), torch.ones(2), doubles([-3.0, -3.0]))
    config = KtoConfig(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    losses = kto_losses(answers, torch.tensor([True, False]), doubles(0.4), config)
    reward = 0.5 * (1 - 0.4)
    sigmoid = 1 / (1 + math.exp(-reward))
    assert losses.tolist() == pytest.approx([2 * (1 - sigmoid), 3 * sigmoid])
    losses.sum().backward()
    slope = 0.5 * sigmoid * (1 - sigmoid)
    assert answers.logps.grad.tolist() == pytest.approx([-2 * slope, 3 * slope])


def test_reward_losses_by_hand_and_by_differences() -> None:
    scores = [doubles([1.0, -0.5]).requires_grad_(), doubles([0.5, 0.5]).requires_grad_()]
    margins = doubles([0.2, 0.0])
    losses = reward_losses(*scores, margins, centring=0.01)
    wanted = [math.log1p(math.exp(-0.3)) + 0.01 * 1.5**2, math.log1p(math.exp(1.0)) + 0.0]
    assert losses.tolist() == pytest.approx(wanted)
    assert reward_losses(*scores)[0].item() == pytest.approx(math.log1p(math.exp(-0.5)))
    assert torch.autograd.gradcheck(lambda a, b: reward_losses(a, b, margins, centring=0.01), scores)


def test_an_unknown_loss_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'simpo'"):
        loss_of({"name": "dppo"})
