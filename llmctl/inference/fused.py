"""Parts of a model that only answers, put in place of those that learn: fewer and larger products, fused steps.

Every replacement gives what the part gives that it replaces, but for rounding: it rounds less often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from llmctl.inference import kernel
from llmctl.inference.cache import PagedAttention
from llmctl.model.attention import Attend
from llmctl.model.feedforward import ACTIVATIONS, FeedForward
from llmctl.model.norms import RMSNorm
from llmctl.model.positions import Angles, rotate
from llmctl.model.transformer import Attention, Block

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
            untouched = q.data_ptr() == joined.data_ptr()  # by a norm, which would give new numbers
            if untouched and kernel.serves(joined):
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


class FusedBlock(nn.Module):
    """A `Block` of a Llama; steps of single tokens run in one call.

    Args:
        block: that it replaces, whose parts are replaced already. It runs all other steps.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        attention, mlp = block.self_attn, block.mlp
        assert isinstance(attention, FusedAttention), "see `fits`"
        assert isinstance(mlp, FusedFeedForward), "see `fits`"
        H, K = attention.heads[:2]
        E, scoring = attention.rest.head_width, attention.rest.scoring
        call = self._call = kernel.Block()
        for name, layer in (
            ("qkv", attention.qkv_proj),
            ("o", attention.o_proj),
            ("gate_up", mlp.gate_up_proj),
            ("down", mlp.down_proj),
        ):
            setattr(call, name, kernel.address(layer.packed))
            setattr(call, f"{name}_bias", kernel.address(layer.bias))
        call.norm, call.eps = kernel.address(block.input_layernorm.weight), block.input_layernorm.eps
        call.norm_after = kernel.address(block.post_attention_layernorm.weight)
        call.eps_after = block.post_attention_layernorm.eps
        call.width, call.inner = block.input_layernorm.weight.numel(), mlp.gate_up_proj.outputs // 2
        kind = kernel.KINDS[block.input_layernorm.weight.dtype]
        inside = call.attention
        inside.heads, inside.kv_heads, inside.width, inside.kind, inside.cache_kind = H, K, E, kind, kind
        inside.window, inside.softcap = scoring.window or 0, scoring.softcap or 0.0
        inside.scale = E**-0.5 if scoring.scale is None else scoring.scale
        self._scratch = call.width + H * E + max((H + 2 * K) * E, 2 * call.inner) + call.inner

    _call: kernel.Block
    _scratch: int

    def call_on(self, data: Tensor) -> kernel.Block:
        """How the kernel is called with one layer of a cache, but for what differs from step to step."""
        call = kernel.Block.from_buffer_copy(self._call)
        call.attention.data, call.attention.block = data.data_ptr(), data.shape[1]
        return call

    @staticmethod
    def fits(block: nn.Module) -> bool:
        """Whether a block is of the one shape that the kernel runs whole."""
        if type(block) is not Block or block.place != "pre" or block.residual_scale != 1.0:
            return False
        attention, mlp = block.self_attn, block.mlp
        if not (isinstance(attention, FusedAttention) and isinstance(mlp, FusedFeedForward)):
            return False
        layers = (attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj)
        return (
            all(hasattr(layer, "packed") and hasattr(layer, "outputs") for layer in layers)
            and mlp.activation is ACTIVATIONS["swiglu"]
            and isinstance(block.input_layernorm, FusedNorm)
            and isinstance(block.post_attention_layernorm, FusedNorm)
            and isinstance(attention.rest.q_norm, nn.Identity)
            and attention.rest.slopes is None
            and attention.rest.sinks is None
        )

    def forward(self, x: Tensor, angles: Angles | None, layer: int, attend: Attend) -> Tensor:
        """See `Block`."""
        if angles is None or not isinstance(attend, PagedAttention) or not attend.all_rows:
            result: Tensor = self.block(x, angles, layer, attend)
            return result
        rows, data, call = attend.rows, attend.cache.data, self._call
        assert rows is not None, "all are rows"
        x = x.contiguous()
        out, scratch = torch.empty_like(x), x.new_empty(len(rows.places) * self._scratch)
        cos, sin = angles
        call.x, call.out, call.scratch = x.data_ptr(), out.data_ptr(), scratch.data_ptr()
        call.cosines, call.signed_sines, call.places = cos.data_ptr(), sin.data_ptr(), attend.places.data_ptr()
        inside = call.attention
        inside.data = data.data_ptr() + layer * data.stride(0) * data.element_size()
        inside.block, inside.tables, inside.places = data.shape[2], rows.tables.data_ptr(), rows.places.data_ptr()
        inside.rows, inside.table_width = rows.places.shape[0], rows.tables.shape[1]
        kernel.run_block(call)
        return out


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
    for parent in list(model.modules()):
        for name, part in list(parent.named_children()):
            if FusedBlock.fits(part):
                assert isinstance(part, Block)
                setattr(parent, name, FusedBlock(part))
