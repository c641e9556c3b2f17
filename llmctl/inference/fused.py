"""Parts of a model that only answers, put in place of those that learn: fewer and larger products, fused steps.

Every replacement gives what the part gives that it replaces, but for rounding: it rounds less often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from llmctl.inference import kernel
from llmctl.model.attention import Attend
from llmctl.model.feedforward import ACTIVATIONS, FeedForward
from llmctl.model.norms import RMSNorm
from llmctl.model.positions import Angles, rotate
from llmctl.model.transformer import Attention

MakeLinear = Callable[[Sequence[Tensor], Tensor | None], nn.Module]
"""A layer of weights [N,K], those of several layers to be one, and bias [N]."""


def joined_linear(layers: Sequence[nn.Linear], make: MakeLinear) -> nn.Module:
    """One layer that gives what all give, behind one another."""
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    return make([layer.weight for layer in layers], torch.cat(biases) if biases else None)


class FusedNorm(nn.Module):
    """An `RMSNorm` in one step.

    Args:
        norm: that it replaces, on a CPU.
    """

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.register_buffer("weight", norm.weight.detach().contiguous())
        self.eps = norm.eps

    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return kernel.rms_norm(x, self.weight, self.eps)


class FusedAttention(nn.Module):
    """An `Attention` that projects to queries, keys and values in one product.

    Args:
        attention: that it replaces, and whose norms and rule it goes on using.
        make: makes its linear layers.
    """

    def __init__(self, attention: Attention, make: MakeLinear) -> None:
        super().__init__()
        layers = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.heads = [layer.out_features // attention.head_width for layer in layers]
        self.qkv_proj = joined_linear(layers, make)
        self.o_proj = make([attention.o_proj.weight], attention.o_proj.bias)
        del attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        self.rest = attention

    def forward(self, x: Tensor, angles: Angles | None, layer: int, attend: Attend) -> Tensor:
        """See `Attention`."""
        rest, width = self.rest, self.rest.head_width
        joined = self.qkv_proj(x)
        q, k, v = joined.view(*x.shape[:-1], -1, width).split(self.heads, dim=-2)
        q, k = rest.q_norm(q), rest.k_norm(k)
        if angles is not None:
            if q.data_ptr() == joined.data_ptr() and kernel.serves(
                joined
            ):  # no norm between, which would give new ones
                kernel.turn(joined, self.heads[0] + self.heads[1], width, angles)
            else:
                q, k = rotate(q, angles), rotate(k, angles)
        mixed: Tensor = self.o_proj(attend(layer, q, k, v, rest.rule(x.device)).flatten(-2))
        return mixed


class FusedFeedForward(nn.Module):
    """A `FeedForward` with a gate whose first two products are one.

    Args:
        layer: that it replaces.
        make: makes its linear layers.
    """

    def __init__(self, layer: FeedForward, make: MakeLinear) -> None:
        super().__init__()
        assert layer.gate_proj is not None, "there is nothing to join"
        self.activation = layer.activation
        self.gate_up_proj = joined_linear((layer.gate_proj, layer.up_proj), make)
        self.down_proj = make([layer.down_proj.weight], layer.down_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,D] to [B,T,D]."""
        joined = self.gate_up_proj(x)
        if self.activation is ACTIVATIONS["swiglu"] and kernel.serves(joined):
            inner = kernel.gated(joined)
        else:
            gate, up = joined.chunk(2, dim=-1)
            inner = self.activation(gate) * up
        mixed: Tensor = self.down_proj(inner)
        return mixed


def fuse(model: nn.Module, make: MakeLinear) -> None:
    """Replace what can be replaced, in place.

    Args:
        model: to change.
        make: makes the linear layers.
    """
    for parent in list(model.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, Attention):
                setattr(parent, name, FusedAttention(part, make))
            elif isinstance(part, FeedForward) and part.gate_proj is not None:
                setattr(parent, name, FusedFeedForward(part, make))
            elif isinstance(part, RMSNorm) and kernel.serves(part.weight):
                setattr(parent, name, FusedNorm(part))
