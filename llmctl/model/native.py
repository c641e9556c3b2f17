"""Python's side of attention.c, fused.c and softmax.c: what a model learns with on a CPU, in kernels of our own.

torch's fused attention computes what documents of a row do not see of one another, and is slow backward; its
cross-entropy writes the logarithms of all probabilities and reads them again; its norms are seven operations. The
kernels take fp32 alone, and compute a row whatever lies beside it in the same order.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmctl.data import compiled
from llmctl.model.attention import PLAIN, Scoring

BUILDS = ("", "_avx2", "_avx512", "_avx512bf16")  # by `level` of softmax.c; see setup.py
LANES = 16  # the most numbers of a register
TAKEN = 32  # as in fused.c

_WHOLE, _NUMBER, _COUNTER = ctypes.c_int64, ctypes.c_float, ctypes.c_int32


def structure(name: str, pointers: str, sizes: str, rest: str = "", counters: str = "next") -> type[ctypes.Structure]:
    """A structure as in native.h, of pointers, 64-bit numbers, floats and 32-bit numbers, in this order."""
    kinds = ((pointers, ctypes.c_void_p), (sizes, _WHOLE), (rest, _NUMBER), (counters, _COUNTER))
    fields = [(field, kind) for fields, kind in kinds for field in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


_Packed = structure(
    "_Packed",
    "q k v out norms grad q_grad k_grad v_grad starts real",
    "documents longest heads kv_heads width value_width window",
    "scale",
    "next failed",
)
_CrossEntropy = structure("_CrossEntropy", "logits targets weights sums losses", "rows width")
_Norm = structure("_Norm", "x weight out scales grad weight_grad beside", "rows width", "eps")
_Gate = structure("_Gate", "gate up out grad up_grad", "rows width")
_Turn = structure("_Turn", "x cosines signed_sines out", "rows heads width", "sign")


def build(beside: str, name: str) -> ctypes.CDLL:
    """The build of kernels for this processor, which lets other threads run meanwhile.

    Args:
        beside: the module's `__file__`.
        name: of the kernels.

    Raises:
        LlmctlError: they were not built.
    """
    return compiled.library(beside, name + BUILDS[compiled.library(__file__, "native").level()])


@functools.cache
def parallel() -> ctypes.c_void_p | None:
    """How torch's own threads are asked to work; another team beside them would fight for the same cores."""
    for path in (Path(torch.__file__).parent / "lib").glob("libgomp*"):
        return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p)
    return None


@functools.cache
def _library() -> ctypes.CDLL:
    return build(__file__, "native")


def _run(kernel: str, job: type[ctypes.Structure], *given: Tensor | float | None) -> None:
    """Run a kernel, which gives 0 where nothing went wrong, on a job of these tensors and numbers."""
    plain = [x.data_ptr() if isinstance(x, Tensor) else x for x in given]
    if getattr(_library(), kernel)(ctypes.byref(job(*plain)), parallel(), torch.get_num_threads()):
        raise RuntimeError(f"out of memory for the kernel {kernel}")  # as torch says it


def serves(*given: Tensor) -> bool:
    """Whether the kernels take these tensors; torch.compile makes kernels of its own."""
    plain = all(x.device.type == "cpu" and x.dtype == torch.float32 for x in given)
    return plain and not torch.compiler.is_compiling()


def _weighed(logits: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Losses [N] of rows of logits [N,V], and the sums [N] of w = e^(logit - largest).

    The w go to `weights` if there are any, which may be the logits themselves.
    """
    losses, sums = logits.new_empty(len(logits)), logits.new_empty(len(logits))
    _run("cross_entropy", _CrossEntropy, logits, targets, weights, sums, losses, *logits.shape)
    return losses, sums


class _CrossEntropies(torch.autograd.Function):
    """See `cross_entropies`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        weights = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        losses, sums = _weighed(logits, targets, weights)
        ctx.save_for_backward(weights, sums, targets)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        weights, sums, targets = ctx.saved_tensors
        slopes = weights * (grad / sums)[:, None]
        return slopes.scatter_add_(1, targets[:, None], -grad[:, None]), None


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target] of each row: float32 [N] of float32 [N,V] and int64 [N].

    Raises:
        IndexError: a target is outside 0..V-1.
    """
    losses: Tensor = _CrossEntropies.apply(logits.contiguous(), _within(targets, logits.shape[-1]))  # type: ignore[no-untyped-call]
    return losses


def _within(targets: Tensor, width: int) -> Tensor:
    if len(targets) and not (targets.min() >= 0 and targets.max() < width):
        raise IndexError(f"a target outside 0..{width - 1}")
    return targets.long().contiguous()


class _ProjectedCrossEntropies(torch.autograd.Function):
    """See `projected_cross_entropies`.

    With w = e^(logit - largest), s their sum and g the gradient of a row's loss, that of its logits is g (w / s - 1 at
    the target). It is never written: what follows from it is the product with w, less what the target takes away.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, matrix: Tensor, targets: Tensor) -> Tensor:
        weights = torch.mm(hidden, matrix.t())
        losses, sums = _weighed(weights, targets, weights if any(ctx.needs_input_grad) else None)
        ctx.save_for_backward(hidden, matrix, targets, weights, sums)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden, matrix, targets, weights, sums = ctx.saved_tensors
        share, grad = (grad / sums)[:, None], grad[:, None]
        hidden_grad = torch.mm(weights, matrix).mul_(share).addcmul_(matrix[targets], grad, value=-1)
        if not ctx.needs_input_grad[1]:  # of adapters' base: as much work again
            return hidden_grad, None, None
        matrix_grad = torch.mm(weights.t(), hidden * share).index_add_(0, targets, hidden * grad, alpha=-1)
        return hidden_grad, matrix_grad, None


def projected_cross_entropies(hidden: Tensor, matrix: Tensor, targets: Tensor) -> Tensor:
    """`cross_entropies` of the logits hidden matrix': float32 [N] of [N,D], [V,D] and int64 [N].

    Raises:
        IndexError: a target is outside 0..V-1.
    """
    targets = _within(targets, len(matrix))
    losses: Tensor = _ProjectedCrossEntropies.apply(hidden.contiguous(), matrix.contiguous(), targets)  # type: ignore[no-untyped-call]
    return losses


def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """What `rms_norm` gives, and what x was multiplied by [N]; without a gradient."""
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    out, scales = torch.empty_like(x), x.new_empty(rows)
    _run("rms_norm", _Norm, x, weight, out, scales, None, None, None, rows, width, eps)
    return out, scales


def norm_gradients(
    x: Tensor, weight: Tensor, scales: Tensor, grad: Tensor, beside: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight from that of `norm`, and what reaches x `beside` the norm added to the first."""
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    out, parts = torch.empty_like(x), x.new_zeros((-(-rows // TAKEN), width))
    _run("rms_norm", _Norm, x, weight, out, scales, grad.contiguous(), parts, beside, rows, width, 0.0)
    return out, parts.sum(dim=0)


class _RMSNorm(torch.autograd.Function):
    """See `rms_norm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, scales = norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scales)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scales = ctx.saved_tensors
        return *norm_gradients(x, weight, scales, grad), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """X / sqrt(mean(x^2) + eps) * weight over the last dimension: float32 of the shape of x."""
    normed: Tensor = _RMSNorm.apply(x.contiguous(), weight.contiguous(), eps)  # type: ignore[no-untyped-call]
    return normed


def gate(gate: Tensor, up: Tensor) -> Tensor:
    """What `gated` gives, without a gradient."""
    out = torch.empty_like(gate)
    _run("gate", _Gate, gate, up, out, None, None, gate.numel() // gate.shape[-1], gate.shape[-1])
    return out


def gate_gradients(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of both from that of `gate`."""
    grad, out, up_grad = grad.contiguous(), torch.empty_like(gate), torch.empty_like(up)
    _run("gate", _Gate, gate, up, out, grad, up_grad, gate.numel() // gate.shape[-1], gate.shape[-1])
    return out, up_grad


class _Gated(torch.autograd.Function):
    """See `gated`."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(given, up)
        return gate(given, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        given, up = ctx.saved_tensors
        return gate_gradients(given, up, grad)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up: float32 of their shape."""
    inner: Tensor = _Gated.apply(gate.contiguous(), up.contiguous())  # type: ignore[no-untyped-call]
    return inner


def turn(x: Tensor, cos: Tensor, signed_sin: Tensor, sign: float = 1.0) -> Tensor:
    """What `turned` gives, without a gradient; with a sign of -1 the gradient of x from that of the result."""
    out, (heads, width) = torch.empty_like(x), x.shape[-2:]
    _run("turn", _Turn, x, cos, signed_sin, out, x.numel() // (heads * width), heads, width, sign)
    return out


class _Turned(torch.autograd.Function):
    """See `turned`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, signed_sin)
        return turn(x, cos, signed_sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, signed_sin = ctx.saved_tensors
        return turn(grad.contiguous(), cos, signed_sin, -1.0), None, None


def turned(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """X cos + (right half, left half) signed_sin: float32 [B,T,H,E] of that and two of [B,T,1,E]."""
    out: Tensor = _Turned.apply(x.contiguous(), cos.contiguous(), signed_sin.contiguous())  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    """See `NativePacked`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, places: NativePacked, window: int, scale: float) -> Tensor:
        out, norms = q.new_empty((*q.shape[:-1], v.shape[-1])), q.new_empty(q.shape[:-1])
        sizes = (len(places.real), places.longest, q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1], window)
        ctx.rule = (places.starts, places.real, *sizes, scale)
        _run("attend_packed", _Packed, q, k, v, out, norms, None, None, None, None, *ctx.rule)
        ctx.save_for_backward(q, k, v, out, norms)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, norms = ctx.saved_tensors
        grad, grads = grad.contiguous(), [torch.empty_like(x) for x in (q, k, v)]
        _run("attend_packed", _Packed, q, k, v, out, norms, grad, *grads, *ctx.rule)
        return (*grads, None, None, None)


@dataclass(frozen=True)
class NativePacked:
    """An `Attend` on a CPU that computes nothing of what documents do not see of one another, and 0 for padding.

    Attributes:
        starts: int32 [S+1], where each document begins in the rows laid end to end, and the end.
        real: int32 [S], 0 for padding.
        longest: tokens of the longest document.
    """

    keeps: ClassVar[bool] = False

    starts: Tensor
    real: Tensor
    longest: int

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring = PLAIN) -> Tensor:
        """Attend by the layer's rule, which has no soft-cap, sinks or slopes."""
        del layer
        if not serves(q, k, v):
            raise TypeError(f"native attention computes in float32 on a CPU, not in {q.dtype} on {q.device}")
        scale = q.shape[-1] ** -0.5 if scoring.scale is None else scoring.scale
        q, k, v = (x.contiguous() for x in (q, k, v))
        mixed: Tensor = _Attention.apply(q, k, v, self, scoring.window or 0, scale)  # type: ignore[no-untyped-call]
        return mixed
