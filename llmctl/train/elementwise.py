"""Lion and Sophia: optimizers that treat every element alone, so that a shard of the parameters is as good as all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023, arXiv:2302.06675, algorithm 2).

    update = sign(β₁ m + (1 - β₁) g); p ← p - lr (update + decay p); m ← β₂ m + (1 - β₂) g.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "the loop computes the gradient itself"
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum: Tensor = state["momentum"]
                update = momentum.lerp(parameter.grad, 1 - beta1).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
                momentum.lerp_(parameter.grad, 1 - beta2)


class Sophia(torch.optim.Optimizer):
    """Sophia (Liu et al. 2023, arXiv:2305.14342, algorithm 3); `estimate` is its Gauss-Newton-Bartlett estimator.

    p ← p - lr decay p - lr clip(m / max(gamma h, ε), 1), m the average of the gradient and h that of the curvature.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def estimate(self, targets: float) -> None:
        """Renew h ← β₂ h + (1 - β₂) B ĝ²; `.grad` holds ĝ, the gradient of the mean loss over B sampled targets."""
        for group in self.param_groups:
            beta = group["betas"][1]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    curvature = self._state(parameter)["curvature"]
                    curvature.mul_(beta).addcmul_(parameter.grad, parameter.grad, value=(1 - beta) * targets)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "the loop computes the gradient itself"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self._state(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - group["betas"][0])
                divisor = (group["gamma"] * state["curvature"]).clamp_(min=group["eps"])
                update = (momentum / divisor).clamp_(-1.0, 1.0)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
            state["curvature"] = torch.zeros_like(parameter)
        return state
