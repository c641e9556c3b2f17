"""What routers learn beside the loss of their model, against sums by hand."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llmctl.config.model import ModelConfig
from llmctl.model.experts import Experts, balance_figures
from llmctl.model.routing import RouterLosses, settle, watch

B, T, WIDTH = 3, 8, 10


def made(router: str = "softmax", **more: float) -> Experts:
    experts = {"count": 4, "top": 2, "ffn_width": 6, "router": router, **more}
    config = ModelConfig.model_validate({"name": "nano", "width": WIDTH, "head_width": 4, "experts": experts})
    assert config.experts is not None
    layer = Experts(config, config.experts)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return layer


def rows() -> tuple[Tensor, Tensor]:
    """[B,T,D], and the places that count: all, three, and none of a row."""
    x = torch.randn(B, T, WIDTH, generator=torch.Generator().manual_seed(1))
    counted = torch.ones(B, T, dtype=torch.bool)
    counted[1, 3:] = False
    counted[2] = False
    return x, counted


def settled(layer: Experts, x: Tensor, counted: Tensor) -> RouterLosses:
    watch(layer)
    layer(x)
    losses = settle(layer, counted)
    assert losses is not None
    return losses


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
def test_the_losses_are_their_formulas(router: str) -> None:
    layer, (x, counted) = made(router, balance_loss=0.5, z_loss=0.25), rows()
    losses = settled(layer, x, counted)
    balance = z = 0.0
    for row in range(B):
        tokens = x[row][counted[row]]
        if not len(tokens):
            continue
        logits = tokens @ layer.router.weight.T
        scores = logits.softmax(-1) if router == "softmax" else logits.sigmoid() / logits.sigmoid().sum(-1)[:, None]
        chosen = layer.route(tokens)[1].flatten().tolist()
        shares = [chosen.count(expert) / len(chosen) for expert in range(4)]
        balance += len(tokens) * 4 * sum(shares[e] * scores[:, e].mean().item() for e in range(4))
        z += sum(torch.log(torch.exp(token).sum()).item() ** 2 for token in logits)
    assert losses.balance.item() == pytest.approx(balance, rel=1e-5)
    assert losses.z.item() == pytest.approx(z, rel=1e-5)
    assert losses.weighted.item() == pytest.approx(0.5 * balance + 0.25 * z, rel=1e-5)


def test_even_choices_give_one_for_each_place() -> None:
    layer, (x, counted) = made(), rows()
    with torch.no_grad():
        layer.router.weight.zero_()  # all scores equal: P is even, whatever was chosen
    assert settled(layer, x, counted).balance.item() == pytest.approx(int(counted.sum()))


def test_rows_may_be_dealt_as_one_likes() -> None:
    layer, (x, counted) = made(balance_loss=0.1, z_loss=0.1), rows()
    whole = settled(layer, x, counted)
    whole.weighted.backward()  # type: ignore[no-untyped-call]
    gradient, load = layer.router.weight.grad, layer.load
    layer.router.weight.grad, layer.load = None, None
    parts = [settled(layer, x[row : row + 1], counted[row : row + 1]) for row in range(B)]
    sum(part.weighted for part in parts).backward()  # type: ignore[union-attr]
    assert sum(part.weighted.item() for part in parts) == pytest.approx(whole.weighted.item(), rel=1e-5)
    assert gradient is not None
    assert layer.router.weight.grad is not None
    assert torch.allclose(layer.router.weight.grad, gradient, rtol=1e-4, atol=1e-6)
    assert load is not None
    assert layer.load is not None
    assert torch.equal(layer.load, load)
    assert load.sum() == 2 * counted.sum()  # two experts for each place that counts


def test_checkpointing_counts_once_and_gives_the_same_gradient() -> None:
    layer, (x, counted) = made(balance_loss=0.1, z_loss=0.1), rows()
    x.requires_grad_()
    gradients, loads = [], []
    for run in (layer, partial(checkpoint, layer, use_reentrant=False)):
        watch(layer)
        made_of_it = run(x)
        losses = settle(layer, counted)
        assert losses is not None
        (made_of_it.square().sum() + losses.weighted).backward()
        assert layer.routed is None  # nothing of the second pass is kept
        gradients.append([parameter.grad.clone() for parameter in layer.parameters() if parameter.grad is not None])
        loads.append(layer.load)
        layer.zero_grad()
        layer.load = None
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert loads[0] is not None
    assert loads[1] is not None
    assert torch.equal(loads[0], loads[1])


def test_the_loss_evens_out_a_router_that_prefers_some() -> None:
    layer, (x, _) = made(balance_loss=1.0), rows()
    x = x + 2.0  # a common part makes some experts everyone's favourites
    counted = torch.ones(B, T, dtype=torch.bool)
    optimizer = torch.optim.Adam([layer.router.weight], lr=0.02)
    uneven = []
    for _ in range(60):
        losses = settled(layer, x, counted)
        uneven.append(balance_figures(layer)["experts_max_violation"])
        layer.load = None
        optimizer.zero_grad()
        losses.weighted.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert uneven[0] > 0.5
    assert uneven[-1] < 0.3


def test_a_model_without_experts_has_nothing_to_settle() -> None:
    assert settle(torch.nn.Linear(2, 2), torch.ones(1, 1, dtype=torch.bool)) is None
