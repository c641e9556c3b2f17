"""Mixtures of experts against one token after another, one expert after another, in float64."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from llmctl.config.blocks import ExpertsConfig
from llmctl.config.model import ModelConfig
from llmctl.model.experts import Experts, balance_figures, rebalance
from llmctl.model.routing import settle, watch

WIDTH = 10
CASES: dict[str, dict[str, Any]] = {
    "mixtral": {"count": 6, "top": 2, "ffn_width": 7},
    "switch": {"count": 5, "top": 1, "ffn_width": 7, "normalise": False},
    "sigmoid": {"count": 6, "top": 3, "ffn_width": 4, "router": "sigmoid", "scale": 2.5},
    "shared": {"count": 4, "top": 2, "ffn_width": 5, "shared": 2, "normalise": False},
    "deepseek": {
        "count": 12,
        "top": 3,
        "ffn_width": 3,
        "shared": 1,
        "router": "sigmoid",
        "scale": 2.5,
        "groups": 4,
        "groups_kept": 2,
        "balance": "bias",
    },
    "all of them": {"count": 3, "top": 3, "ffn_width": 4},
}


def made(given: dict[str, Any], activation: str = "swiglu", seed: int = 0) -> Experts:
    config = ModelConfig.model_validate(
        {"name": "nano", "width": WIDTH, "head_width": 4, "feed_forward": {"activation": activation}, "experts": given}
    )
    assert config.experts is not None
    layer = Experts(config, config.experts).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in [*layer.parameters(), *layer.buffers()]:
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64) * 0.4)
    return layer


def tokens(count: int, seed: int = 3) -> Tensor:
    return torch.randn(1, count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chosen_by_hand(scores: list[float], bias: list[float], given: ExpertsConfig) -> list[int]:
    """The experts of one token, by sorting."""
    eligible = [score + extra for score, extra in zip(scores, bias, strict=True)]
    size = given.count // given.groups
    groups = [range(first, first + size) for first in range(0, given.count, size)]
    if given.groups > 1:
        best = sorted(groups, key=lambda group: -sum(sorted((eligible[e] for e in group), reverse=True)[:2]))
        groups = best[: given.groups_kept]
    candidates = [expert for group in groups for expert in group]
    return sorted(candidates, key=lambda expert: -eligible[expert])[: given.top]


def one_by_one(layer: Experts, x: Tensor) -> Tensor:
    """What the layer must give, without any batching."""
    given, out = layer.given, torch.zeros_like(x[0])
    for place, token in enumerate(x[0]):
        logits = (layer.router.weight.float() @ token.float()).double()
        scores = logits.softmax(0) if given.router == "softmax" else logits.sigmoid()
        bias = [0.0] * given.count if layer.balance_bias is None else layer.balance_bias.tolist()
        chosen = chosen_by_hand(scores.tolist(), bias, given)
        total = sum(scores[e] for e in chosen) if given.normalise else 1.0
        for expert in chosen:
            up = layer.up_proj[expert] @ token
            gated = up if layer.gate_proj is None else functional.silu(layer.gate_proj[expert] @ token) * up
            inner = gated if layer.gate_proj is not None else functional.relu(up) ** 2
            out[place] += given.scale * scores[expert] / total * (layer.down_proj[expert] @ inner)
        if layer.shared is not None:
            out[place] += layer.shared(token)
    return out


@pytest.mark.parametrize("case", CASES)
def test_it_equals_one_token_after_another(case: str) -> None:
    layer, x = made(CASES[case]), tokens(40)
    assert torch.allclose(layer(x)[0], one_by_one(layer, x), atol=1e-6)  # the router computes in float32


def test_without_a_gate_too() -> None:
    layer, x = made(CASES["mixtral"], activation="relu2"), tokens(20)
    assert torch.allclose(layer(x)[0], one_by_one(layer, x), atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_no_token_depends_on_the_others_and_none_is_dropped(case: str) -> None:
    layer, x = made(CASES[case]), tokens(30)
    together = layer(x)
    apart = torch.cat([layer(x[:, place : place + 1]) for place in range(30)], dim=1)
    assert torch.allclose(together, apart, atol=1e-6)
    crowd = x[:, :1].expand(1, 64, WIDTH)  # all want the same experts
    assert torch.allclose(layer(crowd), together[:, :1].expand_as(crowd), atol=1e-6)


def test_the_bias_decides_the_choice_and_not_the_weights() -> None:
    layer, x = made({"count": 4, "top": 1, "ffn_width": 3, "balance": "bias", "normalise": False}), tokens(16)
    assert layer.balance_bias is not None
    layer.balance_bias.copy_(torch.tensor([0.0, 0.0, 5.0, 0.0]))
    weights, chosen = layer.route(x[0])
    assert (chosen == 2).all()
    scores = (x[0].float() @ layer.router.weight.float().T).softmax(-1)
    assert torch.allclose(weights[:, 0], scores[:, 2])


def test_rebalancing_evens_out_a_router_that_prefers_some() -> None:
    layer = made({"count": 8, "top": 2, "ffn_width": 3, "router": "sigmoid", "balance": "bias", "balance_rate": 0.02})
    assert layer.balance_bias is not None
    layer.balance_bias.zero_()
    x, uneven = tokens(400), []
    x = x + 1.0  # a common part makes some experts everyone's favourites
    for _ in range(100):
        watch(layer)
        layer(x)
        settle(layer, torch.ones(1, 400, dtype=torch.bool))
        uneven.append(balance_figures(layer)["experts_max_violation"])
        rebalance(layer)
    assert uneven[0] > 1.0
    assert uneven[-1] < 0.2


def test_a_step_moves_each_bias_by_its_rate_towards_the_mean() -> None:
    layer = made({"count": 4, "top": 2, "ffn_width": 3, "balance": "bias", "balance_rate": 0.5})
    assert layer.balance_bias is not None
    layer.balance_bias.zero_()
    layer.load = torch.tensor([10, 2, 4, 4])
    assert balance_figures(layer) == {"experts_max_violation": 1.0, "experts_unused_fraction": 0.0}
    layer.load = torch.tensor([8, 0, 4, 4])
    assert balance_figures(layer)["experts_unused_fraction"] == 0.25
    rebalance(layer)
    assert layer.balance_bias.tolist() == [-0.5, 0.5, 0.0, 0.0]
    assert layer.load is None
    assert balance_figures(layer) == {}


def test_only_what_is_watched_counts() -> None:
    layer, x = made(CASES["mixtral"]), tokens(15)
    layer(x)
    assert layer.load is None
    assert layer.routed is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"count": 7, "top": 1, "ffn_width": 3, "groups": 2, "normalise": False}, "must be a multiple of groups 2"),
        ({"count": 8, "top": 2, "ffn_width": 3, "groups": 2, "groups_kept": 3}, "give at most 2"),
        ({"count": 8, "top": 5, "ffn_width": 3, "groups": 2, "groups_kept": 1}, "give at most 4"),
        ({"count": 8, "top": 1, "ffn_width": 3}, "set normalise=false"),
    ],
)
def test_an_impossible_choice_is_told_how_to_mend_it(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ExpertsConfig.model_validate(given)
