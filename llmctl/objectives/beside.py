"""What a model learns beside its next token, where its configuration says so: routers, and tokens further on.

The value of the main loss stays what it is, so that losses of models with and without it compare; what is learned
beside it adds to the gradient alone, and its figures are in the model's tally.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmctl.model.attention import Attend
from llmctl.model.likelihood import LOGITS_AT_ONCE, Tensors, losses_of
from llmctl.model.routing import RouterLosses, settle, watch
from llmctl.model.transformer import Transformer, shifted
from llmctl.tokens.batch import IGNORE


def learns_beside(model: Transformer) -> bool:
    """Whether there is anything beside the next token to learn, and it is learned now."""
    return model.training and (model.config.experts is not None or model.config.mtp is not None)


def with_gradient_of(main: Tensor, beside: Tensor) -> Tensor:
    """A scalar with the value of `main` and the gradient of `main` + `beside`."""
    return main + (beside - beside.detach())


def begin(model: Transformer) -> None:
    """To be called before the forward pass."""
    watch(model)


def beside(
    model: Transformer, batch: Tensors, hidden: Tensor, attend: Attend, logits_at_once: int = LOGITS_AT_ONCE
) -> Tensor:
    """The weighted sum of what is learned beside the next token, over the positions that have a target.

    Args:
        model: after `begin` and its forward pass.
        batch: the rows.
        hidden: what the forward pass gave, [B,T,D].
        attend: what it was given.
        logits_at_once: elements of one chunk of logits.
    """
    total = torch.zeros((), device=hidden.device)
    config = model.config.mtp
    if config is not None:
        nll = _further_on(model, batch, hidden, attend, logits_at_once)
        total = total + config.weight / config.depth * nll
    counted = batch.labels != IGNORE
    routed = settle(model, counted)
    if routed is not None:
        _tally_routers(model, routed, counted)
        total = total + routed.weighted
    return total


def _further_on(model: Transformer, batch: Tensors, hidden: Tensor, attend: Attend, logits_at_once: int) -> Tensor:
    """Sum of -log p of the tokens that multi-token prediction predicts, none beyond its document."""
    total = torch.zeros((), device=hidden.device)
    states = model.ahead(hidden, batch.tokens, batch.positions, batch.documents, attend)
    for by, state in enumerate(states, start=1):
        later, within = shifted(batch.labels, batch.documents, by)
        losses, _ = losses_of(model, state, later.masked_fill(~within, IGNORE), logits_at_once)
        total = total + losses.sum()
        _tally(model, "mtp_loss", losses.detach().double().sum(), losses.numel())
    return total


def _tally_routers(model: Transformer, routed: RouterLosses, counted: Tensor) -> None:
    experts, mtp = model.config.experts, model.config.mtp
    assert experts is not None, "something was routed"
    layers = model.config.layers + (mtp.depth if mtp else 0) - experts.first_dense
    places = int(counted.sum().item()) * layers
    _tally(model, "router_balance", routed.balance, places)
    _tally(model, "router_z", routed.z, places)


def _tally(model: Transformer, name: str, value: Tensor, count: int) -> None:
    before, places = model.tally.get(name, (torch.zeros_like(value), 0))
    model.tally[name] = (before + value, places + count)
