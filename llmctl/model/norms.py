"""Norms of the residual stream and of heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmctl.config.model import ModelConfig
from llmctl.model import native


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in float32 inside (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D] of the same dtype."""
        if native.serves(x, self.weight):
            return native.rms_norm(x, self.weight, self.eps)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)  # one kernel for sqrt(sum(x^2))
        scale = torch.rsqrt(norm.square() / x.shape[-1] + self.eps)
        return (x * scale).to(x.dtype) * self.weight


class LayerNorm(nn.Module):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(self, width: int, eps: float, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D] of the same dtype."""
        return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


def norm_of(config: ModelConfig) -> nn.Module:
    """A norm of the residual stream, of the kind that the configuration names."""
    if config.norm.name == "layer":
        return LayerNorm(config.width, config.norm_eps, bias=config.norm.bias)
    return RMSNorm(config.width, config.norm_eps)
