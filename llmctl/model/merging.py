"""Merging of tensors, each method by its formula; all in fp32, tensor by tensor.

Where mergekit and PEFT disagree, both are here by their names (docs/objectives.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

ALMOST_PARALLEL = 0.9995  # |cos| beyond which the arc is taken for a line (mergekit, merge_methods/slerp.py)


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ w W / Σ w (model soups: Wortsman et al. 2022, arXiv:2203.05482)."""
    return torch.stack([weight * tensor for weight, tensor in zip(weights, tensors, strict=True)]).sum(0) / sum(weights)


def slerp(first: Tensor, second: Tensor, at: float) -> Tensor:
    """(sin((1 - t) θ) W0 + sin(t θ) W1) / sin θ, θ the angle between the two tensors (Shoemake 1985).

    The ends keep their lengths. Where they are all but parallel, or one is zero, (1 - t) W0 + t W1.
    """
    lengths = first.norm() * second.norm()
    cosine = float((first * second).sum() / lengths) if lengths > 0 else 1.0
    if abs(cosine) > ALMOST_PARALLEL:
        return (1 - at) * first + at * second
    angle = torch.arccos(torch.tensor(cosine, dtype=torch.float64))
    parts = (torch.sin((1 - at) * angle) / torch.sin(angle), torch.sin(at * angle) / torch.sin(angle))
    return float(parts[0]) * first + float(parts[1]) * second


def task(changes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ w δ, to be added to the base (Ilharco et al. 2022, arXiv:2212.04089)."""
    return torch.stack([weight * change for weight, change in zip(weights, changes, strict=True)]).sum(0)


def ties(changes: Sequence[Tensor], weights: Sequence[float], density: float, variant: str) -> Tensor:
    """Trim, elect, merge (Yadav et al. 2023, arXiv:2306.01708, algorithm 1); to be added to the base.

    Args:
        changes: δ of each model.
        weights: of each.
        density: share of the largest changes that stays.
        variant: mergekit: the sign is that of Σ w δ, and what agrees with it is divided by its Σ w; peft: the sign is
            that of Σ δ, and it is divided by how many agree.
    """
    kept = torch.stack([largest(change, density) for change in changes])
    factors = torch.tensor(weights, dtype=kept.dtype).view(-1, *[1] * changes[0].ndim)
    weighted = factors * kept
    elected = (weighted if variant == "mergekit" else kept).sum(0).sign()
    elected[elected == 0] = 1
    agrees = (kept.sign() == elected) & (kept != 0) if variant == "peft" else (weighted.sign() == elected)
    divisor = (agrees * factors if variant == "mergekit" else agrees.to(kept.dtype)).sum(0)
    summed = (weighted * agrees).sum(0)
    return torch.where(divisor == 0, torch.zeros_like(summed), summed / divisor.where(divisor != 0, torch.ones(())))


def largest(change: Tensor, density: float) -> Tensor:
    """The share `density` of the entries that are largest, and zero elsewhere; of equal ones the earlier stay."""
    count = max(1, round(density * change.numel()))
    order = change.abs().flatten().argsort(descending=True, stable=True)[:count]
    kept = torch.zeros(change.numel(), dtype=change.dtype)
    kept[order] = change.flatten()[order]
    return kept.view(change.shape)


def dropped(change: Tensor, density: float, variant: str, generator: torch.Generator) -> Tensor:
    """DARE (Yu et al. 2023, arXiv:2311.03099, equation 3): each entry stays by chance, and what stays grows.

    Args:
        change: δ.
        density: chance to stay.
        variant: peft: what stays is divided by the density; mergekit: it is scaled to the L1 norm of δ.
        generator: of the chance.
    """
    kept = change * (torch.rand(change.shape, generator=generator) < density)
    if variant == "peft":
        return kept / density
    norm = kept.abs().sum()
    return kept * (change.abs().sum() / norm) if norm > 0 else kept


def generator_of(seed: int, *names: str) -> torch.Generator:
    """Chance for one tensor of one model: it depends on nothing but these."""
    text = "\0".join((str(seed), *names)).encode()
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:7], "big"))
