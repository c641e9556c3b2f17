"""Optimizers by configuration, and which parameters they treat in which way."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from llmctl.config.errors import UsageError
from llmctl.config.optimizers import (
    AdafactorConfig,
    Adam8bitConfig,
    AdamWConfig,
    LionConfig,
    MuonConfig,
    OptimizerConfig,
)
from llmctl.train.elementwise import Lion, Sophia
from llmctl.train.muon import Muon

NOT_HIDDEN = ("embed_", "lm_head")  # matrices that look ids up or score them: Muon leaves these to AdamW


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices (two or more dimensions, embeddings included) decay, gains and biases do not.

    Parameters that need no gradient are left out, and a shared (tied) one must be given once.
    The order within a group is that of `named`.
    """
    trained = [parameter for _, parameter in named if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [part for group in groups if group["params"] for part in _by_rate(group)]


def _by_rate(group: dict[str, Any]) -> list[dict[str, Any]]:
    """The group, cut where parameters carry a `rate_factor` of their own (LoRA+)."""
    factors = sorted({getattr(parameter, "rate_factor", 1.0) for parameter in group["params"]})
    if factors == [1.0]:
        return [group]
    return [
        {**group, "params": [p for p in group["params"] if getattr(p, "rate_factor", 1.0) == factor], "rate": factor}
        for factor in factors
    ]


def muon_groups(named: Iterable[tuple[str, nn.Parameter]], config: MuonConfig) -> list[dict[str, Any]]:
    """Three groups: hidden matrices for Muon; embeddings and head, then gains and biases, for AdamW."""
    given = list(named)
    hidden = [(name, p) for name, p in given if p.ndim >= 2 and not name.startswith(NOT_HIDDEN)]
    chosen = {name for name, _ in hidden}
    constants = {"betas": config.betas, "eps": config.eps, "lr": config.rest_lr or config.lr, "orthogonal": False}
    muon = {
        "orthogonal": True,
        "momentum": config.momentum,
        "nesterov": config.nesterov,
        "ns_steps": config.ns_steps,
        "lr": config.lr,
    }
    rest = parameter_groups(((name, p) for name, p in given if name not in chosen), config.weight_decay)
    return [
        *({**group, **muon} for group in parameter_groups(hidden, config.weight_decay)),
        *({**group, **constants} for group in rest),
    ]


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, dtype: torch.dtype | None = None
) -> torch.optim.Optimizer:
    """The optimizer over `model`'s parameters; `set_rate` sets the learning rate anew at every step.

    Args:
        model: what is trained.
        config: which optimizer.
        dtype: of matrix products, None for that of the weights.

    Raises:
        UsageError: the package that it comes from is missing, or cannot work on this device.
    """
    named = list(model.named_parameters())
    if isinstance(config, MuonConfig):
        optimizer: torch.optim.Optimizer = Muon(muon_groups(named, config), dtype or torch.float32)
    else:
        optimizer = _by_elements(parameter_groups(named, config.weight_decay), config, named[0][1].device)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"] * group.pop("rate", 1.0)
    return optimizer


def _by_elements(groups: list[dict[str, Any]], config: OptimizerConfig, device: torch.device) -> torch.optim.Optimizer:
    """Every optimizer whose groups differ in their decay only."""
    if isinstance(config, AdamWConfig):
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    if isinstance(config, AdafactorConfig):
        decay, clip = config.beta2_decay, config.clip_threshold
        return torch.optim.Adafactor(groups, lr=config.lr, beta2_decay=decay, d=clip, foreach=False)
    if isinstance(config, Adam8bitConfig):
        return _eight_bit(groups, config, device)
    for group in groups:
        group |= {"lr": config.lr, "betas": config.betas}
    if isinstance(config, LionConfig):
        return Lion(groups)
    assert not isinstance(config, MuonConfig), "Muon has groups of its own"
    for group in groups:
        group |= {"gamma": config.gamma, "eps": config.eps}
    return Sophia(groups)


def _eight_bit(groups: list[dict[str, Any]], config: Adam8bitConfig, device: torch.device) -> torch.optim.Optimizer:
    if device.type != "cuda":
        raise UsageError("optimizer adamw8bit needs a GPU", hint="take optimizer=adamw, or a machine with CUDA")
    try:
        package = importlib.import_module("bitsandbytes")
    except ImportError:
        raise UsageError(
            "optimizer adamw8bit needs the package bitsandbytes, which is not installed",
            hint="pip install 'llmctl[bitsandbytes]', or take optimizer=adamw",
        ) from None
    optimizer: torch.optim.Optimizer = package.optim.AdamW8bit(groups, config.lr, config.betas, config.eps)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its peak learning rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def described(optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> str:
    """One line that says which parameters are treated how."""
    parts = []
    for group in optimizer.param_groups:
        count = sum(parameter.numel() for parameter in group["params"])
        method = ("muon" if group["orthogonal"] else "adamw") if "orthogonal" in group else config.name
        rate = f"lr {group['peak_lr']:g}, decay {group['weight_decay']:g}"
        parts.append(f"{method} on {len(group['params'])} tensors, {count:,} parameters ({rate})")
    return "; ".join(parts)
