"""Matrix products of a model that only answers: laid out for this machine's kernels, or with weights in 8 or 4 bits."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmctl.config.devices import Weights
from llmctl.inference import kernel
from llmctl.inference.fused import MakeLinear, fuse
from llmctl.model.transformer import Transformer, outline

GROUP = 32
"""Weights that share one scale in 4 bits: consecutive ones of an output."""
READ_DIRECTLY = ("kv_b_proj", "router")
"""Layers whose weight the model itself reads, so that they stay as they are."""
TINY = 1e-30
"""Least scale, so that a row of zeros divides by something."""
PART = 1 << 18
"""Weights that are turned back at a time: 1 MiB in float32."""
FEW_ROWS = 4
"""Up to so many rows the 8-bit kernel is faster than turning the weights back first (measured, docs/benchmarks.md)."""


class PackedLinear(nn.Module):
    """A linear layer whose weight is stored in the order in which the kernel reads it.

    Args:
        weights: [N,K], float32 or bfloat16, on a CPU; of several layers that are to be one.
        bias: [N].
        do: lays the weights out.
    """

    def __init__(self, weights: Sequence[Tensor], bias: Tensor | None, do: kernel.Do = kernel.at_once) -> None:
        super().__init__()
        self.outputs = sum(map(len, weights))
        self.register_buffer("packed", kernel.pack([weight.detach() for weight in weights], do))
        self.register_buffer("bias", None if bias is None else bias.detach())

    packed: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """[...,K] to [...,N]."""
        return kernel.linear(x, self.packed, self.bias, self.outputs)


class Int8Linear(nn.Module):
    """Weights in 8 bits, one scale for each output, the largest of which is 127.

    Args:
        weight: [N,K].
        bias: [N].
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        exact = weight.detach().float()
        scales = (exact.abs().amax(dim=1) / 127).clamp(min=TINY).to(weight.dtype)
        whole = (exact / scales.float()[:, None]).round().clamp(-127, 127)
        self.register_buffer("whole", whole.to(torch.int8))  # [N,K]
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if bias is None else bias.detach())

    whole: Tensor
    scales: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """[...,K] to [...,N]."""
        rows = x.reshape(-1, x.shape[-1])
        if x.device.type == "cpu" and x.dtype == torch.bfloat16 and rows.shape[0] <= FEW_ROWS:
            out = torch._weight_int8pack_mm(rows, self.whole, self.scales)  # noqa: SLF001
        else:
            out = torch.cat([functional.linear(rows, some) for some in self._in_floats(x)], dim=-1) * self.scales
        if self.bias is not None:
            out = out + self.bias
        return out.view(*x.shape[:-1], -1)

    def _in_floats(self, like: Tensor) -> Iterator[Tensor]:
        """The whole numbers in the format of `like`, part by part on a CPU: a part stays in its nearest memory."""
        if like.device.type != "cpu":
            yield self.whole.to(like.dtype)
            return
        rows = max(1, PART // self.whole.shape[1])
        part = torch.empty((min(rows, self.whole.shape[0]), self.whole.shape[1]), dtype=like.dtype)
        for some in torch.split(self.whole, rows):
            yield part[: len(some)].copy_(some)

    def dequantized(self) -> Tensor:
        """The weights that it stands for, [N,K] in float32."""
        return self.whole.float() * self.scales.float()[:, None]


class Int4Linear(nn.Module):
    """Weights in 4 bits, w = (q - 8) x scale + offset, with a scale and an offset for each group of an output.

    In bfloat16 on a CPU a kernel of PyTorch reads them as they are; elsewhere they are turned back at each call, which
    saves memory but no time.

    Args:
        weight: [N,K], K a multiple of the group and N of 16.
        bias: [N].
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        N, K = self.shape = (weight.shape[0], weight.shape[1])
        grouped = weight.detach().float().view(N, K // GROUP, GROUP)
        least, most = grouped.amin(dim=-1), grouped.amax(dim=-1)
        scales = ((most - least) / 15).clamp(min=TINY)
        both = torch.stack((scales, least + 8 * scales), dim=-1).to(weight.dtype)  # [N,K/group,2]
        scales, offsets = both.float()[..., None, :].unbind(-1)
        whole = ((grouped - offsets) / scales + 8).round().clamp(0, 15).to(torch.int32).view(N, K)
        self._kernel = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
        if self._kernel:
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole, 1)  # noqa: SLF001
        else:
            packed = (whole[:, : K // 2] | whole[:, K // 2 :] << 4).to(torch.uint8)  # [N,K/2]
        self.register_buffer("packed", packed)
        self.register_buffer("scales", both.transpose(0, 1).contiguous())  # [K/group,N,2]
        self.register_buffer("bias", None if bias is None else bias.detach())

    packed: Tensor
    scales: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """[...,K] to [...,N]."""
        rows = x.reshape(-1, x.shape[-1])
        if self._kernel:
            kernel = torch.ops.aten._weight_int4pack_mm_for_cpu  # noqa: SLF001
            out = kernel(rows, self.packed, GROUP, self.scales)
        else:
            out = functional.linear(rows, self.dequantized().to(x.dtype))
        if self.bias is not None:
            out = out + self.bias
        shaped: Tensor = out.view(*x.shape[:-1], -1)
        return shaped

    def dequantized(self) -> Tensor:
        """The weights that it stands for, [N,K]; float32 unless the kernel's order hides them."""
        N, K = self.shape
        if self._kernel:
            unit, kernel = torch.eye(K, dtype=self.scales.dtype), torch.ops.aten._weight_int4pack_mm_for_cpu  # noqa: SLF001
            turned: Tensor = kernel(unit, self.packed, GROUP, self.scales).T
            return turned
        scales, offsets = self.scales.float().transpose(0, 1)[..., None, :].unbind(-1)  # [N,K/group,1] each
        whole = torch.cat((self.packed & 15, self.packed >> 4), dim=1).float().view(N, K // GROUP, GROUP)
        return torch.addcmul(offsets, whole - 8, scales).reshape(N, K)


def prepare(model: Transformer, weights: Weights, do: kernel.Do = kernel.at_once) -> Transformer:
    """Replace the linear layers of a model in place; it can then neither be trained nor saved.

    In 4 bits the output matrix, where errors hurt most, and layers whose width no group divides have 8. The input
    embedding, the experts of a mixture and what `READ_DIRECTLY` names keep their format.

    Args:
        model: to change.
        weights: `plain` keeps the weights' values and only reorders them where that helps.
        do: reorders them; the model is ready once that is done.
    """
    make = _maker(model, weights, do)
    if make is None:
        return model
    fuse(model, make)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear) and layer is not model.lm_head and name not in READ_DIRECTLY:
                setattr(parent, name, make([layer.weight], layer.bias))
    head = _int8 if weights == "int4" else make
    model.lm_head = head([model.output_weight], None)
    return model


def prepared(model: Transformer) -> Transformer:
    """What answers as a model in training does now, whose weights it reads and reorders; `prepare` would end training.

    Returns:
        The model itself where its parts are not those that its configuration says: with adapters or in 8-bit floats.
    """
    like = outline(model.config, model.vocab_size)
    parts = {name: type(part) for name, part in model.named_modules()}
    if any(parts.get(name) is not type(part) for name, part in like.named_modules()):
        return model
    given, shapes = model.state_dict(), like.state_dict()
    like.load_state_dict({name: given[name] for name in shapes}, assign=True)
    return prepare(like.eval(), "plain")


def _maker(model: Transformer, weights: Weights, do: kernel.Do) -> MakeLinear | None:
    """What makes a layer's replacement; None where nothing is to be replaced."""
    if weights == "plain":
        return functools.partial(_packed, do=do) if kernel.serves(model.output_weight) else None
    return _int8 if weights == "int8" else _int4


def _int8(weights: Sequence[Tensor], bias: Tensor | None) -> nn.Module:
    return Int8Linear(torch.cat(list(weights)), bias)


def _int4(weights: Sequence[Tensor], bias: Tensor | None) -> nn.Module:
    weight = torch.cat(list(weights))
    return (Int4Linear if _fits_groups(weight) else Int8Linear)(weight, bias)


def _packed(weights: Sequence[Tensor], bias: Tensor | None, do: kernel.Do) -> nn.Module:
    width = weights[0].shape[1]
    if weights[0].dtype == torch.float32 or width % 2 == 0:
        return PackedLinear(weights, bias, do)
    weight = torch.cat(list(weights))  # the kernel reads pairs
    kept = nn.Linear(width, len(weight), bias=bias is not None, device="meta")
    kept.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias}, assign=True)
    return kept


def _fits_groups(weight: Tensor) -> bool:
    return weight.shape[1] % GROUP == 0 and weight.shape[0] % 16 == 0
