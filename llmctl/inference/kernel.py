"""Python's side of kernel.c, linear.c and choice.c: the steps of a model that answers on a CPU.

What lies between the products torch runs as several operations that wait for one another, and its attention of single
queries in bfloat16 takes ten times as long as reading the keys does. Products of few rows read weights at the speed of
memory here, at half of it through oneDNN; and a row's result does not depend on the rows beside it.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmctl.model import native
from llmctl.model.attention import Scoring
from llmctl.model.positions import Angles

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # as in lanes.h
WIDEST_HEAD = 256  # as in kernel.c
PANEL = 32  # as in linear.c
SHARED = 1 << 20  # fewer weights one thread lays out before another is awake
NOT_FINITE = "the model's logits are not finite, so no token can be chosen"


# As in steps.h.
_Attention = native.structure(
    "_Attention",
    "q out data scales tables places slopes sinks",
    "rows heads kv_heads width block table_width q_stride window",
    "scale softcap",
    "kind cache_kind next",
)
_Linear = native.structure("_Linear", "x weight bias residual out", "rows width outputs", counters="kind next")
_Packing = native.structure("_Packing", "weight packed", "outputs width", counters="kind next")
_Choice = native.structure(
    "_Choice", "logits raw manners masses tokens logprobs peaks", "rows vocab", counters="next worker"
)


@functools.cache
def library() -> ctypes.CDLL:
    """The build for this processor, which lets other threads run meanwhile.

    Raises:
        LlmctlError: the kernel was not built.
    """
    return native.build(__file__, "kernel")


@functools.cache
def _short() -> ctypes.PyDLL:
    """The same for calls of a few microseconds, which are over before another thread could have had the lock."""
    short = ctypes.PyDLL(library()._name)  # noqa: SLF001 (the path)
    pointer, whole, kind = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    short.rms_norm.argtypes = (pointer, pointer, pointer, whole, whole, ctypes.c_float, kind)
    short.gated.argtypes = (pointer, pointer, whole, whole, kind)
    short.turn.argtypes = (pointer, pointer, pointer, whole, whole, whole, whole, kind)
    short.keep.argtypes = (pointer, pointer, pointer, pointer, whole, whole, whole)
    return short


def serves(x: Tensor) -> bool:
    """Whether the kernel takes numbers of this kind, where they are."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)


def serves_heads(data: Tensor) -> bool:
    """Whether it attends to a cache [..., width] of this kind."""
    width = data.shape[-1]
    return data.device.type == "cpu" and data.dtype in KINDS and width % native.LANES == 0 and width <= WIDEST_HEAD


@dataclass(frozen=True)
class Rows:
    """Rows of a step that attend one by one, each to what the cache holds of its sequence.

    Attributes:
        tables: int32 [sequences, blocks], where each sequence's blocks are.
        places: int32 [rows, 2], the number of each row's sequence and how many of its tokens it sees.
    """

    tables: Tensor
    places: Tensor


def attend(q: Tensor, data: Tensor, scales: Tensor | None, rows: Rows, scoring: Scoring) -> Tensor:
    """Attention of single queries through block tables.

    Args:
        q: [R,H,E].
        data: one layer of the cache, [blocks, block, 2 x K, E], in the type of q or in 8 bits.
        scales: float32 [blocks, block, 2 x K, 1] for 8 bits.
        rows: R of them.
        scoring: the layer's rule.

    Returns:
        [R,H,E].
    """
    R, H, E = q.shape
    if q.stride()[1:] != (E, 1):
        q = q.contiguous()
    out = torch.empty((R, H, E), dtype=q.dtype)
    slopes = None if scoring.slopes is None else scoring.slopes.float().contiguous()
    sinks = None if scoring.sinks is None else scoring.sinks.float().contiguous()
    job = _Attention(
        *map(address, (q, out, data, scales, rows.tables, rows.places, slopes, sinks)),
        *(R, H, data.shape[2] // 2, E, data.shape[1], rows.tables.shape[1], q.stride(0), scoring.window or 0),
        E**-0.5 if scoring.scale is None else scoring.scale,
        scoring.softcap or 0.0,
        KINDS[q.dtype],
        KINDS[data.dtype],
    )
    library().attend(ctypes.byref(job), native.parallel(), torch.get_num_threads())
    return out


class Block(ctypes.Structure):
    """As in steps.h; `FusedBlock` fills it in."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "out", "scratch", "norm", "qkv", "qkv_bias", "o", "o_bias")),
        *((name, ctypes.c_void_p) for name in ("norm_after", "gate_up", "gate_up_bias", "down", "down_bias")),
        *((name, ctypes.c_void_p) for name in ("cosines", "signed_sines", "places")),
        ("width", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("eps_after", ctypes.c_float),
        ("attention", _Attention),
    )


def run_block(block: Block) -> None:
    """Run one, whose every field is set."""
    library().block(ctypes.byref(block), native.parallel(), torch.get_num_threads())


def address(tensor: Tensor | None) -> int | None:
    """Where its numbers are; None for none."""
    return None if tensor is None else tensor.data_ptr()


Do = Callable[[Callable[[], None]], object]
"""Sees to it that some work is done: now, or by another thread."""


def at_once(work: Callable[[], None]) -> None:
    """Do it now."""
    work()


def pack(weights: Sequence[Tensor], do: Do = at_once) -> Tensor:
    """Weights [N,K], of layers that are to be one, in the order in which `linear` reads them: in panels of 32 outputs.

    Args:
        weights: K is even in bfloat16.
        do: lays them out, if not at once then into the memory that is returned.
    """
    if any(len(weight) % PANEL for weight in weights[:-1]):
        weights = [torch.cat(list(weights))]
    panels = [-(-len(weight) // PANEL) for weight in weights]
    width, dtype = weights[0].shape[1], weights[0].dtype
    packed = torch.empty(sum(panels) * PANEL * width, dtype=dtype)
    parts = torch.split(packed, [count * PANEL * width for count in panels])
    for part, weight in zip(parts, weights, strict=True):
        do(functools.partial(_lay_out, weight, part))
    return packed


def _lay_out(weight: Tensor, packed: Tensor) -> None:
    whole = weight.contiguous()
    job = _Packing(whole.data_ptr(), packed.data_ptr(), *whole.shape, KINDS[whole.dtype])
    threads = torch.get_num_threads() if whole.numel() >= SHARED else 1
    library().pack(ctypes.byref(job), native.parallel(), threads)


def linear(x: Tensor, packed: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """Products [...,K] to [...,N] with weights from `pack`."""
    x = x.contiguous()
    width = x.shape[-1]
    out = x.new_empty((*x.shape[:-1], outputs))
    given = (x.data_ptr(), packed.data_ptr(), address(bias), None, out.data_ptr())
    job = _Linear(*given, x.numel() // width, width, outputs, KINDS[x.dtype])
    library().linear(ctypes.byref(job), native.parallel(), torch.get_num_threads())
    return out


Manner = tuple[float, float, int, float, float, int]
"""A row's uniform number, temperature, top_k, top_p, min_p, and the log-probability that it wants, as in choice.c."""


def choose(logits: Tensor, raw: Tensor, manners: Sequence[Manner]) -> tuple[list[int], list[float]]:
    """The next token of each row and its log-probability; token -1 where all logits are -inf.

    Args:
        logits: float32 [B,V], contiguous.
        raw: the same before penalties and bans; may be `logits`.
        manners: B.

    Raises:
        FloatingPointError: a row of `raw` is not finite.
    """
    B, V = logits.shape
    threads = torch.get_num_threads()
    given = np.array(manners, dtype=np.float64)
    masses = torch.empty(threads * -(-V // native.LANES) * native.LANES)
    tokens, told = np.empty(B, dtype=np.int64), np.empty((2, B), dtype=np.float32)
    places = (given.ctypes.data, masses.data_ptr(), tokens.ctypes.data, told[0].ctypes.data, told[1].ctypes.data)
    job = _Choice(logits.data_ptr(), raw.data_ptr(), *places, B, V)
    library().choose(ctypes.byref(job), native.parallel(), threads)
    if not np.isfinite(told[1]).all():
        raise FloatingPointError(NOT_FINITE)
    return tokens.tolist(), told[0].tolist()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm: x / sqrt(mean(x^2) + eps) * weight over the last dimension, rounded once."""
    x = x.contiguous()
    out = torch.empty_like(x)
    width = x.shape[-1]
    given = (x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.numel() // width, width, eps, KINDS[x.dtype])
    _short().rms_norm(*given)
    return out


def gated(joined: Tensor) -> Tensor:
    """silu(gate) * up of gate and up behind one another, [..., 2 x F] to [..., F], rounded once."""
    joined = joined.contiguous()
    width = joined.shape[-1] // 2
    out = joined.new_empty((*joined.shape[:-1], width))
    _short().gated(joined.data_ptr(), out.data_ptr(), out.numel() // max(width, 1), width, KINDS[joined.dtype])
    return out


def turn(joined: Tensor, heads: int, width: int, angles: Angles) -> None:
    """`rotate` the first heads of each token in place.

    Args:
        joined: [B,T,at least heads x width], contiguous.
        heads: how many.
        width: of a head.
        angles: of B x T tokens.
    """
    cos, sin = (angle.contiguous() for angle in angles)
    stride = joined.shape[-1]
    rows = joined.numel() // stride
    given = (joined.data_ptr(), cos.data_ptr(), sin.data_ptr(), rows, stride, heads, width, KINDS[joined.dtype])
    _short().turn(*given)


def keep(k: Tensor, v: Tensor, data: Tensor, places: Tensor) -> bool:
    """Write keys and values of N tokens, [N,K,E] both, to their places; False, and nothing, where they lie otherwise.

    Args:
        k: of the type of the cache, heads one behind the other.
        v: as k, tokens as far apart.
        data: one layer of the cache, [blocks, block, 2 x K, E].
        places: int64 [N].
    """
    N, K, E = k.shape
    if k.stride() != v.stride() or k.stride()[1:] != (E, 1) or k.dtype != data.dtype:
        return False
    size = data.element_size()
    given = (k.data_ptr(), v.data_ptr(), data.data_ptr(), places.data_ptr(), N, k.stride(0) * size, K * E * size)
    _short().keep(*given)
    return True
