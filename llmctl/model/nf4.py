"""Frozen weights in 4 bits, under adapters (QLoRA: Dettmers et al. 2023, arXiv:2305.14314).

The 16 values are quantiles of a normal distribution, in which trained weights roughly are; each block of 64 weights has
one scale, and the scales of 256 blocks are 8-bit numbers around their mean (section 3, double quantization): 4.127 bits
a weight in all. The paper keeps the scales as 8-bit floats; these are integers in equal steps, which came out with a
third of the error (scales of normal weights).

Engines have 4 bits of another kind (`llmctl.inference.linears`), for kernels that cannot be differentiated; these are
turned back in the forward pass and again in the backward pass, so that neither keeps them.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmctl.model.transformer import Transformer

BLOCK: Final = 64
"""Weights that share a scale."""
BLOCKS: Final = 256
"""Scales that share a scale of their own."""
READ_DIRECTLY: Final = ("kv_b_proj", "router")
"""Layers whose weight the model itself reads, so that they stay as they are."""


def _values() -> list[float]:
    """The 16 values (appendix E): quantiles at equal steps on either side of zero, which is one of them, over 1.

    The outermost probability is half-way between those of 15 and of 16 quantiles, 1 - (1/32 + 1/30) / 2.
    """
    outermost, quantile = 1 - (1 / 32 + 1 / 30) / 2, NormalDist().inv_cdf

    def side(count: int) -> list[float]:
        step = (outermost - 0.5) / count
        return [quantile(outermost - at * step) for at in range(count)]

    above, below = side(8), [-value for value in side(7)]
    return [value / above[0] for value in sorted([*below, 0.0, *above])]


VALUES: Final = torch.tensor(_values(), dtype=torch.float32)


class Packed(nn.Module):
    """A tensor in 4 bits.

    Args:
        weight: of any shape.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape = weight.shape
        flat = weight.detach().float().flatten()
        blocks = functional.pad(flat, (0, -flat.numel() % (2 * BLOCK))).view(-1, BLOCK)  # an even number of them
        scales = blocks.abs().amax(dim=1)
        middles = ((VALUES[1:] + VALUES[:-1]) / 2).to(flat.device)
        codes = torch.bucketize(blocks / scales.where(scales > 0, 1)[:, None], middles).to(torch.uint8).flatten()
        mean = scales.mean()
        around = functional.pad(scales - mean, (0, -scales.numel() % BLOCKS)).view(-1, BLOCKS)
        spreads = around.abs().amax(dim=1) / 127
        whole = (around / spreads.where(spreads > 0, 1)[:, None]).round().to(torch.int8)
        parts = {
            "codes": codes[0::2] << 4 | codes[1::2],  # uint8 [weights / 2]
            "whole": whole.flatten()[: scales.numel()].clone(),  # int8 [blocks]
            "spreads": spreads,  # [blocks / 256]
            "mean": mean,
            "values": VALUES.to(flat.device),
        }
        for name, part in parts.items():
            self.register_buffer(name, part, persistent=False)  # made from the base again, so in no checkpoint

    codes: Tensor
    whole: Tensor
    spreads: Tensor
    mean: Tensor
    values: Tensor

    @property
    def scales(self) -> Tensor:
        """One for each block, as they are kept."""
        spreads = self.spreads.repeat_interleave(BLOCKS)[: self.whole.numel()]
        return self.whole * spreads + self.mean

    def turned_back(self) -> Tensor:
        """The weights that it stands for, fp32."""
        codes = torch.stack((self.codes >> 4, self.codes & 15), dim=-1).int()
        blocks = self.values[codes].view(-1, BLOCK) * self.scales[:, None]
        return blocks.flatten()[: self.shape.numel()].view(self.shape)

    @property
    def bytes(self) -> int:
        """That it takes."""
        return sum(part.numel() * part.element_size() for part in (self.codes, self.whole, self.spreads, self.mean))


class _Product(torch.autograd.Function):
    """X W^T, with W turned back anew in either pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Packed) -> Tensor:
        ctx.packed = packed
        return functional.linear(x, packed.turned_back().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.packed.turned_back().to(gradient.dtype), None


class Nf4Linear(nn.Module):
    """A linear layer that is not learned, with its weight in 4 bits.

    Args:
        layer: what it stands in for.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.packed = Packed(layer.weight)
        bias = None if layer.bias is None else layer.bias.detach()
        self.register_buffer("bias", bias, persistent=False)

    bias: Tensor | None

    def product(self, x: Tensor) -> Tensor:
        """[…,I] to […,O], without the bias."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):  # as it would cast the inputs of a product
            x = x.to(torch.get_autocast_dtype(kind))
        made: Tensor = _Product.apply(x, self.packed)  # type: ignore[no-untyped-call]
        return made

    def forward(self, x: Tensor) -> Tensor:
        """[…,I] to […,O]."""
        made = self.product(x)
        return made if self.bias is None else made + self.bias.to(made.dtype)

    @property
    def weight(self) -> Tensor:
        """The weights that it stands for, [O,I] in fp32, made at each call."""
        return self.packed.turned_back()


def quantized(name: str, layer: nn.Module) -> bool:
    """Whether a layer is kept in 4 bits: the linear ones of blocks; embedding and output matrix are not."""
    head = name == "lm_head"
    return isinstance(layer, nn.Linear) and not head and name.rpartition(".")[2] not in READ_DIRECTLY


def quantize(model: Transformer) -> int:
    """Put the linear layers of the blocks into 4 bits, one at a time, in place.

    Returns:
        Bytes that they take.
    """
    found = [name for name, layer in model.named_modules() if quantized(name, layer)]
    size = 0
    for name in found:
        parent, _, last = name.rpartition(".")
        layer = Nf4Linear(model.get_submodule(name))  # type: ignore[arg-type]
        setattr(model.get_submodule(parent), last, layer)
        size += layer.packed.bytes
    return size


def rounded(weight: Tensor) -> Tensor:
    """What a weight becomes by 4 bits and back, in fp32."""
    return Packed(weight).turned_back()
