"""Blocks of Llama's kind whose gradient is written out: two nodes of autograd around attention, on a CPU in fp32.

What a small model spends between its products is nodes for each operation, and sums of gradients where a tensor is
used more than once. Here a sum is made by the product or the norm that comes last. The mathematics is that of
`llmctl.model.transformer.Block`, which computes what these do not serve.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from llmctl.model import native
from llmctl.model.attention import Attend
from llmctl.model.feedforward import FeedForward
from llmctl.model.norms import RMSNorm
from llmctl.model.positions import Angles
from llmctl.model.transformer import Attention, Block, Transformer


class _Queried(torch.autograd.Function):
    """The norm before attention, then queries, keys and values, the first two turned by their angles.

    Beside q [B,T,H,E], k and v [B,T,K,E] it gives x [B,T,D] again, so that the gradient that reaches x behind it is
    added where that of the norm is made.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, *given: Any) -> tuple[Tensor, ...]:
        eps, E, cos, signed_sin, *weights = given
        normed, scales = native.norm(x, gain, eps)
        rows = normed.flatten(0, -2)  # [N,D]
        q, k, v = (torch.mm(rows, weight.t()).view(*x.shape[:-1], -1, E) for weight in weights)
        ctx.save_for_backward(x, gain, scales, rows, cos, signed_sin, *weights)
        return x.view_as(x), native.turn(q, cos, signed_sin), native.turn(k, cos, signed_sin), v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, beside: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, scales, rows, cos, signed_sin, *weights = ctx.saved_tensors
        q, k, v = (grad.contiguous() for grad in grads)
        q, k = native.turn(q, cos, signed_sin, -1.0), native.turn(k, cos, signed_sin, -1.0)
        flat = [grad.flatten(2).flatten(0, 1) for grad in (q, k, v)]
        made = native.norm_gradients(x, gain, scales, _summed(flat, weights), beside.contiguous())
        return *made, None, None, None, None, *(torch.mm(grad.t(), rows) for grad in flat)


class _Mixed(torch.autograd.Function):
    """The product behind attention added to x, then norm and gated feed-forward, added again: [B,T,D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mixed: Tensor, eps: float, *weights: Tensor) -> Tensor:
        output, gain, gate, up, down = weights
        ctx.shape = mixed.shape
        mixed = mixed.flatten(0, -3).flatten(1)  # [N,H G]
        x = torch.addmm(x.flatten(0, -2), mixed, output.t()).view_as(x)
        normed, scales = native.norm(x, gain, eps)
        rows = normed.flatten(0, -2)
        gates, ups = torch.mm(rows, gate.t()), torch.mm(rows, up.t())  # [N,F]
        inner = native.gate(gates, ups)
        ctx.save_for_backward(mixed, x, scales, rows, gates, ups, inner, *weights)
        return torch.addmm(x.flatten(0, -2), inner, down.t()).view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mixed, x, scales, rows, gates, ups, inner, output, gain, gate, up, down = ctx.saved_tensors
        grad = grad.contiguous()
        flat = grad.flatten(0, -2)
        bent = native.gate_gradients(gates, ups, torch.mm(flat, down))
        x_grad, gain_grad = native.norm_gradients(x, gain, scales, _summed(bent, (gate, up)), grad)
        stream = x_grad.flatten(0, -2)
        of_output, of_down = torch.mm(stream.t(), mixed), torch.mm(flat.t(), inner)
        of_gate, of_up = (torch.mm(one.t(), rows) for one in bent)
        return x_grad, torch.mm(stream, output).view(ctx.shape), None, of_output, gain_grad, of_gate, of_up, of_down


def _summed(grads: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Σ grad weight: [N,D] of some [N,F] and [F,D]."""
    total = torch.mm(grads[0], weights[0])
    for grad, weight in zip(grads[1:], weights[1:], strict=True):
        total.addmm_(grad, weight)
    return total


def differentiate(model: Transformer) -> None:
    """Let the blocks that are of Llama's kind learn through what is written here, where the tensors allow."""
    for block in model.layers:
        if isinstance(block, Block) and _is_plain(block):
            block.forward = functools.partial(_run, block, block.forward)  # type: ignore[method-assign]


def _is_plain(block: Block) -> bool:
    """Whether its configuration asks for nothing else than what is written here."""
    attention, mlp = block.self_attn, block.mlp
    if not isinstance(attention, Attention) or not isinstance(mlp, FeedForward):
        return False
    gated = mlp.gate_proj is not None and mlp.activation is functional.silu and attention.sinks is None
    alone = isinstance(attention.q_norm, nn.Identity) and attention.slopes is None
    norms = isinstance(block.input_layernorm, RMSNorm) and isinstance(block.post_attention_layernorm, RMSNorm)
    return gated and alone and norms and block.place == "pre" and block.residual_scale == 1.0


def _run(
    block: Any, otherwise: Callable[..., Tensor], x: Tensor, angles: Angles | None, layer: int, attend: Attend
) -> Tensor:
    """`Block.forward`."""
    attention, mlp, norms = block.self_attn, block.mlp, (block.input_layernorm, block.post_attention_layernorm)
    queried = (attention.q_proj, attention.k_proj, attention.v_proj)
    mixed = (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    if angles is None or not _serves(x, angles, [*queried, *mixed], norms):
        return otherwise(x, angles, layer, attend)
    first, second = norms
    sizes = (first.eps, attention.head_width, *angles)
    made = _Queried.apply(x, first.weight, *sizes, *(one.weight for one in queried))  # type: ignore[no-untyped-call]
    x, q, k, v = made
    output, *inner = (one.weight for one in mixed)
    attended = attend(layer, q, k, v, attention.rule(x.device))
    result: Tensor = _Mixed.apply(x, attended, second.eps, output, second.weight, *inner)  # type: ignore[no-untyped-call]
    return result


def _serves(x: Tensor, angles: Angles, layers: list[nn.Linear], norms: tuple[RMSNorm, RMSNorm]) -> bool:
    """Whether there is a gradient to come, of all weights, through plain products in float32."""
    if not torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type) or x.shape[:-1] != angles[0].shape[:-2]:
        return False
    if not all(type(one) is nn.Linear and one.bias is None for one in layers):  # no adapter, nothing rounded
        return False
    weights = [*(one.weight for one in layers), *(one.weight for one in norms)]
    return native.serves(x, *weights) and all(weight.requires_grad for weight in weights)
