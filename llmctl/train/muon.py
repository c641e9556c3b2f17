"""Muon: momentum orthogonalised by Newton-Schulz, on whole matrices however the parameters are sharded.

Jordan et al. 2024, kellerjordan.github.io/posts/muon; scaled as in Liu et al. 2025 (arXiv:2502.16982). Under ZeRO a
matrix lies in pieces on several ranks. Each matrix is gathered on one rank, which orthogonalises it and sends the
result back, so that every matrix is orthogonalised exactly once a step at every stage, and the ranks share the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from llmctl.train.shards import Layout, Piece

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al.: steepest at 0 among those that keep values in [0.7, 1.2]
UPDATE_SIZE = 0.2  # root mean square of AdamW's updates (Liu et al., section 2.2)
NORM_FLOOR = 1e-7


def newton_schulz(matrix: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """About U Vᵀ for matrix = U S Vᵀ: its singular values brought into [0.7, 1.2]; same shape, in `dtype`.

    x ← a x + (b x xᵀ + c (x xᵀ)²) x, from the matrix divided by its Frobenius norm; the last two dimensions are
    the matrix, earlier ones number several of them.
    """
    a, b, c = QUINTIC
    x: Tensor = matrix.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + NORM_FLOOR)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon over the groups marked `orthogonal`, AdamW over the others.

    Args:
        groups: parameter groups, each with `orthogonal`, `lr`, `weight_decay` and the constants of its method.
        dtype: of the matrix products of an orthogonalisation.

    Attributes:
        layout: where the matrices are; None stands for parameters that are given whole to the only rank.
    """

    def __init__(self, groups: list[dict[str, Any]], dtype: torch.dtype) -> None:
        super().__init__(groups, {})
        self.dtype = dtype
        self.layout: Layout | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; collective where there are ranks."""
        assert closure is None, "the loop computes the gradient itself"
        for group in self.param_groups:
            held = [tensor for tensor in group["params"] if tensor.grad is not None]
            if group["orthogonal"]:
                self._update_matrices(group, held)
            elif held:
                self._update_rest(group, held)

    def _update_matrices(self, group: dict[str, Any], held: list[Tensor]) -> None:
        """Momentum, then the matrices in rounds of one for each rank."""
        layout = self.layout or Layout(Piece(str(n), t.shape, t, 0, 0, t.numel()) for n, t in enumerate(held))
        directions = {id(tensor): self._direction(group, tensor) for tensor in held}
        for tensor in held:
            tensor.mul_(1 - group["lr"] * group["weight_decay"])
        pieces = [piece for tensor in held for piece in layout.within(tensor)]
        for first in range(0, len(pieces), layout.world_size):
            part = pieces[first : first + layout.world_size]
            given = [layout.gather(piece, directions[id(piece.held)], owner) for owner, piece in enumerate(part)]
            made = [None if whole is None else newton_schulz(whole, group["ns_steps"], self.dtype) for whole in given]
            for owner, (piece, whole) in enumerate(zip(part, made, strict=True)):
                like = torch.empty(0, dtype=self.dtype, device=piece.held.device)
                update = layout.spread(piece, whole, owner, like).contiguous()
                rate = group["lr"] * UPDATE_SIZE * math.sqrt(max(piece.shape[-2:]))
                piece.of(piece.held).add_(piece.out_of(update).to(piece.held.dtype), alpha=-rate)

    def _direction(self, group: dict[str, Any], held: Tensor) -> Tensor:
        """What is orthogonalised: the momentum, or the gradient moved towards it."""
        assert held.grad is not None, "only tensors with a gradient come here"
        state = self.state[held]
        if not state:
            state["momentum"] = torch.zeros_like(held)
        momentum: Tensor = state["momentum"]
        momentum.lerp_(held.grad, 1 - group["momentum"])
        return held.grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum

    def _update_rest(self, group: dict[str, Any], held: list[Tensor]) -> None:
        """AdamW by torch, on the tensors as they are: it works element by element."""
        for tensor in held:
            if not self.state[tensor]:
                self.state[tensor] = {
                    "step": torch.zeros((), dtype=torch.float32, device=tensor.device),
                    "exp_avg": torch.zeros_like(tensor),
                    "exp_avg_sq": torch.zeros_like(tensor),
                }
        states = [self.state[tensor] for tensor in held]
        adamw(
            held,
            [tensor.grad for tensor in held if tensor.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
