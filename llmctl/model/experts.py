"""Mixture of experts: a router sends each token through a few of many feed-forward layers, and drops none.

The top experts of a token by their scores (Shazeer et al. 2017, arXiv:1701.06538; Mixtral, arXiv:2401.04088), shared
and fine-grained ones (DeepSeekMoE, arXiv:2401.06066), groups, a sigmoid router and a bias that balances without a loss
(DeepSeek-V3, arXiv:2412.19437, section 2.1.2; Wang et al. 2024, arXiv:2408.15664). What a router learns beside the
loss of its model is in `llmctl.model.routing`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmctl.config.blocks import ExpertsConfig
from llmctl.config.model import ModelConfig
from llmctl.model.feedforward import ACTIVATIONS, FeedForward


@dataclass(frozen=True)
class Routed:
    """What a router did in one forward pass.

    Attributes:
        logits: float32 [B,T,X].
        chosen: int64 [B,T,C].
    """

    logits: Tensor
    chosen: Tensor


class Experts(nn.Module):
    """The routed experts and the shared ones of one layer.

    Shapes: N tokens, D width, X experts, F inner width of one, C experts chosen for a token.

    Attributes:
        watched: whether the next forward pass leaves what it routed in `routed`.
        routed: see `watched`; None otherwise.
        load: tokens that each expert got in training since `rebalance`; int64 [X], None before any.
    """

    def __init__(self, config: ModelConfig, given: ExpertsConfig) -> None:
        super().__init__()
        D, X, F = config.width, given.count, given.ffn_width
        self.given = given
        self.activation = ACTIVATIONS[config.feed_forward.activation]
        self.router = nn.Linear(D, X, bias=False)
        self.gate_proj = nn.Parameter(torch.empty(X, F, D)) if config.feed_forward.gated else None
        self.up_proj = nn.Parameter(torch.empty(X, F, D))
        self.down_proj = nn.Parameter(torch.empty(X, D, F))
        self.shared = FeedForward(config, given.shared * F) if given.shared else None
        self.balance_bias: Tensor | None
        self.register_buffer("balance_bias", torch.zeros(X) if given.balance == "bias" else None)
        self.watched = False
        self.routed: Routed | None = None
        self.load: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,D] to [B,T,D]."""
        tokens = x.reshape(-1, x.shape[-1])  # [N,D]
        logits = self._logits(tokens)
        weights, chosen = self._choice(logits)
        if self.watched:
            self.routed = Routed(logits.view(*x.shape[:-1], -1), chosen.view(*x.shape[:-1], -1))
        mixed = self._through(tokens, weights, chosen).view_as(x)
        return mixed if self.shared is None else mixed + self.shared(x)

    def route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (float32) and numbers of each token's experts, [N,C] both, from tokens [N,D]."""
        return self._choice(self._logits(tokens))

    def _logits(self, tokens: Tensor) -> Tensor:
        """[N,X] in float32 whatever the precision, because a near tie would otherwise go either way."""
        with torch.autocast(tokens.device.type, enabled=False):
            return functional.linear(tokens.float(), self.router.weight.float())

    def _choice(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits.softmax(dim=-1) if self.given.router == "softmax" else logits.sigmoid()
        eligible = scores if self.balance_bias is None else scores + self.balance_bias.float()
        chosen = self._within_groups(eligible).topk(self.given.top, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if self.given.normalise:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return weights * self.given.scale, chosen

    def _within_groups(self, scores: Tensor) -> Tensor:
        """[N,X] with -inf outside the groups whose two best experts have the largest sums."""
        if self.given.groups_kept == self.given.groups:
            return scores
        grouped = scores.view(scores.shape[0], self.given.groups, -1)  # [N,groups,X/groups]
        kept = grouped.topk(2, dim=-1).values.sum(dim=-1).topk(self.given.groups_kept, dim=-1).indices
        dropped = torch.ones(grouped.shape[:2], dtype=torch.bool, device=scores.device).scatter(1, kept, value=False)
        return grouped.masked_fill(dropped[..., None], -torch.inf).view_as(scores)

    def _through(self, tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Sum of what the chosen experts make of each token, times their weights: [N,D].

        Tokens are sorted by expert, so that each expert multiplies all of its own at once; the sum goes through the
        inverse order, not through atomic additions, so it is the same at every run.
        """
        order = chosen.flatten().argsort(stable=True)  # [N x C]
        sizes = torch.bincount(chosen.flatten(), minlength=self.given.count).tolist()
        parts = torch.split(tokens[order // self.given.top], sizes)
        made = torch.cat([self._expert(index, part) for index, part in enumerate(parts) if part.shape[0]])
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
        apart = made[inverse].view(*chosen.shape, -1)  # [N,C,D]
        return (apart * weights[..., None].to(apart.dtype)).sum(dim=1)

    def _expert(self, index: int, tokens: Tensor) -> Tensor:
        """What one expert makes of its tokens: [n,D] to [n,D]."""
        inner = functional.linear(tokens, self.up_proj[index])
        if self.gate_proj is None:
            inner = self.activation(inner)
        else:
            inner = self.activation(functional.linear(tokens, self.gate_proj[index])) * inner
        return functional.linear(inner, self.down_proj[index])


def layers_of(model: nn.Module) -> list[Experts]:
    """The mixtures of a model, from the first layer on."""
    return [module for module in model.modules() if isinstance(module, Experts)]


def balance_figures(model: nn.Module) -> dict[str, float]:
    """How evenly tokens were spread since `rebalance`, the worst layer's figures; nothing where nothing was counted.

    Returns:
        `experts_max_violation`: tokens of the busiest expert over the mean, less 1; 0 is even (arXiv:2408.15664,
        section 4.1). `experts_unused_fraction`: share of experts without any token.
    """
    loads = [layer.load.double() for layer in layers_of(model) if layer.load is not None]
    if not loads:
        return {}
    return {
        "experts_max_violation": max((load.max() / load.mean()).item() - 1 for load in loads),
        "experts_unused_fraction": max((load == 0).double().mean().item() for load in loads),
    }


@torch.no_grad()
def rebalance(model: nn.Module) -> None:
    """End a step: move each bias by its rate towards the experts with fewer tokens than the mean, and count anew.

    With several ranks, sum `load` over them first, or their biases drift apart.
    """
    for layer in layers_of(model):
        if layer.load is not None and layer.balance_bias is not None:
            load = layer.load.double()
            step = layer.given.balance_rate * torch.sign(load.mean() - load)
            layer.balance_bias += step.to(layer.balance_bias.dtype)
        layer.load = None
