"""What routers learn beside the loss of their model, and the count of who got which token.

A forward pass between `watch` and `settle` is looked at; all others (held-out rows, generation, the second pass of
activation checkpointing) are not. Only positions with a target count, so padding has no say.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmctl.model.experts import Experts, Routed, layers_of


@dataclass(frozen=True)
class RouterLosses:
    """Sums over the positions that count, and over layers.

    Attributes:
        weighted: what is to be added to a loss that is such a sum too; it has a gradient.
        balance: float64, without the weight: the positions times the layers where all is even.
        z: float64, without the weight.
    """

    weighted: Tensor
    balance: Tensor
    z: Tensor


def watch(model: nn.Module) -> None:
    """Let the next forward pass leave what its routers did."""
    for layer in layers_of(model):
        layer.watched, layer.routed = True, None


def settle(model: nn.Module, counted: Tensor) -> RouterLosses | None:
    """Count the tokens of the watched pass into each layer's `load`, and give what its routers are to learn from it.

    Args:
        model: whose forward pass has run since `watch`.
        counted: bool [B,T], the positions that count.

    Returns:
        The losses; None for a model without experts.
    """
    weighted = torch.zeros((), device=counted.device)
    balance, z = (torch.zeros((), dtype=torch.float64, device=counted.device) for _ in range(2))
    layers = layers_of(model)
    for layer in layers:
        routed, layer.watched, layer.routed = layer.routed, False, None
        assert routed is not None, "watch, then forward, then settle"
        given = layer.given
        _count(layer, routed.chosen[counted])
        uneven, spread = _balance(layer, routed, counted), _z(routed, counted)
        weighted = weighted + given.balance_loss * uneven + given.z_loss * spread
        balance += uneven.detach()
        z += spread.detach()
    return RouterLosses(weighted, balance, z) if layers else None


@torch.no_grad()
def _count(layer: Experts, chosen: Tensor) -> None:
    counts = torch.bincount(chosen.flatten(), minlength=layer.given.count)
    layer.load = counts if layer.load is None else layer.load + counts


def _balance(layer: Experts, routed: Routed, counted: Tensor) -> Tensor:
    """Sum over rows of positions x sum over experts of f P: 1 for each position where all is even.

    f is the share of a row's choices that an expert got, times X, and P its mean score (Shazeer et al. 2017; Switch:
    Fedus et al. 2021, arXiv:2101.03961, equation 4). Both are taken over one row, as in DeepSeek-V3 (equations 17 to
    20), so that the sum does not depend on which rows share a micro-batch, a rank or a step.
    """
    scores = routed.logits.softmax(-1) if layer.given.router == "softmax" else routed.logits.sigmoid()
    scores = scores / scores.sum(dim=-1, keepdim=True)
    weight = counted[..., None].to(scores.dtype)  # [B,T,1]
    positions = weight.sum(dim=1).clamp_min(1.0)  # [B,1]
    chose = torch.zeros_like(scores).scatter(-1, routed.chosen, 1.0)  # [B,T,X]
    share = (chose * weight).sum(dim=1) * (layer.given.count / layer.given.top) / positions  # [B,X]
    return (share * (scores * weight).sum(dim=1)).sum()


def _z(routed: Routed, counted: Tensor) -> Tensor:
    """Sum of (log sum exp logits)^2, which keeps logits small (ST-MoE: Zoph et al. 2022, arXiv:2202.08906, eq. 5)."""
    return routed.logits[counted].logsumexp(dim=-1).square().sum()
