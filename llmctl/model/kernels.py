"""Attention of packed rows through kernels that skip what documents do not see: FlexAttention, FlashAttention, our own.

`llmctl.model.attention` says everything with masks and torch's own SDPA, on every device; what is here gives the same
and is chosen at the start of a run, after a small product has shown that it runs and agrees.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from llmctl.config.devices import AttentionBackend
from llmctl.config.errors import UsageError
from llmctl.config.model import ModelConfig
from llmctl.model.attention import PLAIN, Attend, Scoring, packed
from llmctl.model.device import DTYPES, product_dtype
from llmctl.model.native import LANES, NativePacked
from llmctl.model.transformer import Transformer

TOLERANCE = 2e-2  # of a probe in bf16, whose digits end at 2^-8
WIDEST_HEAD = 256  # of FlashAttention
COMPUTES_IN = {"native": ("fp32",), "flash": ("bf16", "fp16")}


@dataclass(frozen=True)
class FlexPacked:
    """An `Attend` through FlexAttention (Dong et al. 2024, arXiv:2412.05496), which skips blocks that are masked.

    Attributes:
        documents: int [B,T], number of the document within its row, -1 on padding.
    """

    keeps: ClassVar[bool] = False

    documents: Tensor
    _masks: dict[int | None, Any] = field(default_factory=dict)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring = PLAIN) -> Tensor:
        """Attend by the layer's rule."""
        from torch.nn.attention.flex_attention import AuxRequest

        del layer
        q, k, v = (x.transpose(1, 2) for x in _of_one_dtype(q, k, v))
        window = scoring.window if scoring.window is not None and scoring.window < q.shape[2] else None
        mixed, extra = _flex(q.device.type)(
            q,
            k,
            v,
            score_mod=_score_rule(scoring),
            block_mask=self._mask(window),
            scale=scoring.scale,
            enable_gqa=q.shape[1] != k.shape[1],
            return_aux=AuxRequest(lse=True),
        )
        if scoring.sinks is not None:  # a sink adds exp(sink) to the sum that the softmax divides by
            kept = torch.sigmoid(extra.lse - scoring.sinks.float()[:, None])
            mixed = mixed * kept[..., None].to(mixed.dtype)
        result: Tensor = mixed.transpose(1, 2)
        return result

    def _mask(self, window: int | None) -> Any:
        """The blocks that a layer computes, made once for each window."""
        from torch.nn.attention.flex_attention import create_block_mask

        if window not in self._masks:
            documents = self.documents

            def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                del head
                near = query >= key if window is None else (query >= key) & (query - key < window)
                return near & (documents[row, query] == documents[row, key])

            B, T = documents.shape
            self._masks[window] = create_block_mask(seen, B, None, T, T, device=documents.device)
        return self._masks[window]


def _score_rule(scoring: Scoring) -> Callable[..., Tensor] | None:
    """What becomes of a score, as FlexAttention wants it."""
    softcap, slopes = scoring.softcap, scoring.slopes
    if softcap is None and slopes is None:
        return None

    def rule(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del row
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        return score if slopes is None else score - slopes[head] * (query - key)

    return rule


@functools.cache
def _flex(device_type: str) -> Callable[..., Any]:
    """FlexAttention, compiled where that pays; uncompiled it holds all scores."""
    from torch.nn.attention.flex_attention import flex_attention

    kernel: Callable[..., Any] = flex_attention
    return torch.compile(kernel, dynamic=False) if device_type == "cuda" else kernel


@dataclass(frozen=True)
class FlashPacked:
    """An `Attend` through FlashAttention for sequences of any length (Dao 2023, arXiv:2307.08691), as torch has it.

    Attributes:
        starts: int32 [S+1], where each document begins in the rows laid end to end, and the end.
        longest: tokens of the longest document.
    """

    keeps: ClassVar[bool] = False

    starts: Tensor
    longest: int

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring = PLAIN) -> Tensor:
        """Attend by the layer's rule, which has no soft-cap, sinks or slopes."""
        from torch.nn.attention.varlen import varlen_attn

        del layer
        queries, keys, values = (x.flatten(0, 1) for x in _of_one_dtype(q, k, v))  # [B x T, heads, E]
        before = -1 if scoring.window is None else scoring.window - 1
        mixed: Any = varlen_attn(
            queries,
            keys,
            values,
            self.starts,
            self.starts,
            self.longest,
            self.longest,
            scale=scoring.scale,
            window_size=(before, 0),
            enable_gqa=q.shape[2] != k.shape[2],
        )
        result: Tensor = mixed.view(*q.shape[:-1], -1)
        return result


def document_starts(documents: Tensor) -> tuple[Tensor, int]:
    """Where each document of rows, int [B,T], begins, int32 [S+1] with the end, and the tokens of the longest.

    Padding counts as one more document of its row.
    """
    B, T = documents.shape
    change = torch.ones(B, T, dtype=torch.bool, device=documents.device)
    change[:, 1:] = documents[:, 1:] != documents[:, :-1]
    begins = change.flatten().nonzero().flatten()
    starts = torch.cat((begins, begins.new_tensor([B * T])))
    return starts.to(torch.int32), int(starts.diff().max().item()) if documents.numel() else 0


def _of_one_dtype(*given: Tensor) -> tuple[Tensor, ...]:
    """In the dtype of autocast, which does not know these kernels, or else of the last."""
    device_type = given[0].device.type
    autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if autocast else given[-1].dtype
    return tuple(x.to(dtype) for x in given)


def attend_through(backend: str, documents: Tensor, *, one_each: bool | None = None) -> Attend:
    """Attention of packed rows through `sdpa`, `native`, `flex` or `flash`; the arguments are those of `packed`."""
    if backend == "flex":
        return FlexPacked(documents)
    if backend == "flash":
        return FlashPacked(*document_starts(documents))
    if backend == "native":
        starts, longest = document_starts(documents)
        return NativePacked(starts, (documents.flatten()[starts[:-1]] >= 0).to(torch.int32), longest)
    return packed(documents, one_each=one_each)


def set_backend(
    model: Transformer,
    precision: str,
    device: torch.device,
    wanted: AttentionBackend = "auto",
    *,
    compiled: bool = False,
) -> str:
    """`choose_backend` for packed rows that go through `model`, which then attends so; the line that says so."""
    dtype = product_dtype(precision) or torch.float32
    model.attention_backend, told = choose_backend(wanted, model.config, device, dtype, compiled=compiled)
    return told


def choose_backend(
    wanted: AttentionBackend, config: ModelConfig, device: torch.device, dtype: torch.dtype, *, compiled: bool = False
) -> tuple[str, str]:
    """Which kernel a run attends through.

    `auto` is SDPA under torch.compile; on a CPU our own kernel and on an accelerator FlashAttention or FlexAttention,
    the first that can say what the model does, runs here and agrees with SDPA, and else SDPA.

    Args:
        wanted: of the configuration.
        config: the model's.
        device: where it runs.
        dtype: of its products.
        compiled: whether the whole model is compiled.

    Returns:
        Its name, and a line that says what was chosen and why not another.

    Raises:
        UsageError: one was asked for by name and cannot be had.
    """
    if wanted == "sdpa":
        return "sdpa", "attention through sdpa"
    if wanted != "auto":
        if reason := _hindrance(wanted, config, device, dtype):
            raise UsageError(f"attention_backend={wanted}: {reason}", hint="attention_backend=auto takes what works")
        return wanted, f"attention through {wanted}"
    if compiled:
        return "sdpa", "attention through sdpa (compiled)"
    reasons: list[str] = []
    for name in ("native",) if device.type == "cpu" else ("flash", "flex"):
        reason = _hindrance(name, config, device, dtype)
        if reason is None:
            return name, "; ".join([f"attention through {name}", *reasons])
        reasons.append(f"not {name}: {reason}")
    return "sdpa", "; ".join(["attention through sdpa", *reasons])


def _hindrance(backend: str, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a kernel cannot be had for this model here; None where it can."""
    elsewhere = {"flex": "it has no backward pass on a CPU", "flash": "it runs on GPUs alone"}
    if device.type != "cpu":
        elsewhere = {"native": "it runs on CPUs alone"}
    if backend in elsewhere:
        return elsewhere[backend]
    names = COMPUTES_IN.get(backend, tuple(DTYPES))
    if dtype not in (DTYPES[name] for name in names):
        return f"it computes in {' and '.join(names)} alone"
    if backend != "flex" and (beyond := _beyond(backend, config)):
        return f"it cannot express {beyond}"
    try:
        return disagreement(backend, config, device, dtype)
    except Exception as error:  # noqa: BLE001 (a kernel that is missing or broken fails in any way it likes)
        return f"it fails here: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def _beyond(backend: str, config: ModelConfig) -> str:
    """What of the model FlashAttention or our kernel has no word for; empty where it can say all."""
    attention = config.attention
    parts = {
        "soft-caps": attention.softcap is not None,
        "sinks": attention.sinks,
        "alibi": config.positions == "alibi",
    }
    if backend == "flash":
        parts["latent attention"] = config.latent is not None
        parts[f"heads wider than {WIDEST_HEAD}"] = config.head_width > WIDEST_HEAD
    else:
        widths = [config.head_width, *([config.latent.value_width] if config.latent else [])]
        parts[f"heads whose width {LANES} does not divide"] = any(width % LANES for width in widths)
    return " and ".join(name for name, has in parts.items() if has)


def disagreement(backend: str, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """Attend a little, forward and backward, in a kernel and in SDPA; what differs, None where they agree."""
    B, T, H, K, E = 2, 256, config.heads, config.kv_heads, config.head_width
    G = E if config.latent is None else config.latent.value_width
    documents = (torch.arange(T, device=device) // 100).expand(B, T).contiguous()
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, T, H, E), (B, T, K, E), (B, T, K, G)]
    drawn = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    scoring = Scoring(config.attention.scale, config.attention.window, config.attention.softcap)
    results = []
    for name in (backend, "sdpa"):
        q, k, v = given = [x.clone().requires_grad_() for x in drawn]
        mixed = attend_through(name, documents, one_each=False)(0, q, k, v, scoring)
        mixed.float().square().sum().backward()  # type: ignore[no-untyped-call]
        results.append([mixed, *(x.grad for x in given)])
    for what, ours, theirs in zip(("result", "gradient of q", "of k", "of v"), *results, strict=True):
        assert ours is not None, "all were asked for"
        assert theirs is not None, "all were asked for"
        off = ((ours - theirs).float().abs().max() / theirs.float().abs().max()).item()
        if not off <= TOLERANCE:
            return f"its {what} is off by {off:.2g}"
    return None
