"""How queries meet keys: the `Attend` interface, scoring rules, and attention within the documents of packed rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Scoring:
    """How one layer turns q k' into weights, beyond what is visible at all.

    Attributes:
        scale: factor of the scores; None for 1 / sqrt(E).
        window: tokens that a token sees, itself included; None for all.
        softcap: scores become softcap x tanh(score / softcap) (Gemma 2, arXiv:2408.00118, section 2).
        slopes: float32 [H], what a score loses for each token of distance (ALiBi).
        sinks: [H], a score that takes its share of the softmax and has no value (Xiao et al. 2023, arXiv:2309.17453;
            learned, as in gpt-oss).
    """

    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    slopes: Tensor | None = None
    sinks: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether softmax(scale x q k') is all there is to it."""
        return self.window is None and self.softcap is None and self.slopes is None and self.sinks is None


PLAIN = Scoring()
SCORES_HELD = 1 << 23  # elements of [B,H,T,S] that attention written out may hold: 16 MiB in bf16


class Attend(Protocol):
    """What each position sees. q and k carry their rotary positions already.

    Attributes:
        keeps: whether k and v are kept for later tokens; latent attention then gives what is smallest to keep.
    """

    keeps: ClassVar[bool]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring = PLAIN) -> Tensor:
        """From q [B,T,H,E], k [B,T,K,E] and v [B,T,K,G] to [B,T,H,G]; `layer` counts from 0."""
        ...


def scaled_dot_product(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    """Attention softmax(q k' / sqrt(E)) v with each of the K heads shared by H / K query heads.

    Args:
        q: [B,T,H,E].
        k: [B,S,K,E].
        v: [B,S,K,G].
        mask: broadcastable to [B,H,T,S]: bool, True where attention is allowed, or what is added to the scores;
            None for all of it.
        is_causal: with no mask and T = S, each position sees itself and what comes before.
        scale: in place of 1 / sqrt(E).

    Returns:
        [B,T,H,G] in the dtype of q.
    """
    if _better_by_products(q, k):
        return _by_products(q, k, v, mask, is_causal=is_causal, scale=scale)
    # SDPA wants the heads before the positions: [B,H,T,E].
    mixed = functional.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return mixed.transpose(1, 2)


def _better_by_products(q: Tensor, k: Tensor) -> bool:
    """Whether plain products outrun torch's fused kernel: on a CPU, in bf16, when a gradient is to follow.

    The fused kernel's backward pass there took 12 ms where products took 4 (4 rows of 256, 6 heads of 32, one core).
    """
    scores = q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1]
    trains = torch.is_grad_enabled() and q.requires_grad
    return trains and q.device.type == "cpu" and q.dtype == torch.bfloat16 and scores <= SCORES_HELD


def _by_products(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, is_causal: bool, scale: float | None
) -> Tensor:
    """`scaled_dot_product` written out, scores and weights in the dtype of q; it holds [B,H,T,S] of both."""
    B, T, H, E = q.shape
    S, K = k.shape[1:3]
    queries = (q * (E**-0.5 if scale is None else scale)).transpose(1, 2).reshape(B * K, H // K * T, E)
    keys, values = (x.transpose(1, 2).flatten(0, 1) for x in (k, v))  # [B x K,S,E], [B x K,S,G]
    scores = (queries @ keys.mT).view(B, H, T, S)
    if mask is None and is_causal:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        added = mask
        if mask.dtype == torch.bool:
            added = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -math.inf)
        scores = scores + added
    weights = scores.softmax(dim=-1).view(B * K, H // K * T, S)
    return (weights @ values).view(B, H, T, -1).transpose(1, 2)


def scored(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scoring: Scoring,
    distance: Callable[[], Tensor],
    *,
    is_causal: bool = False,
) -> Tensor:
    """Attention by a rule: the fused kernel where it can say the rule, explicit mathematics for soft-cap and sinks.

    Args:
        q: [B,T,H,E].
        k: [B,S,K,E].
        v: [B,S,K,G].
        mask: bool, broadcastable to [B,H,T,S]; None where a query sees all that is not after it.
        scoring: the rule.
        distance: gives the query's place less the key's, int, broadcastable to [B,1,T,S]; asked where it matters.
        is_causal: as in `scaled_dot_product`, for a mask of None.
    """
    window = scoring.window if scoring.window is not None and scoring.window < k.shape[1] else None
    explicit = scoring.softcap is not None or scoring.sinks is not None
    if window is None and scoring.slopes is None and not explicit:
        return scaled_dot_product(q, k, v, mask, is_causal=is_causal, scale=scoring.scale)
    away = distance()
    allowed = away >= 0 if mask is None else mask
    if window is not None:
        allowed = allowed & (away < window)
    bias = None if scoring.slopes is None else -scoring.slopes[:, None, None] * away  # [B,H,T,S]
    if explicit:
        return _explicit(q, k, v, allowed, bias, scoring)
    if bias is not None:
        allowed = bias.masked_fill(~allowed, -math.inf).to(q.dtype)
    return scaled_dot_product(q, k, v, allowed, scale=scoring.scale)


def _explicit(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, bias: Tensor | None, scoring: Scoring) -> Tensor:
    """Attention written out, the softmax in float32; it holds [B,H,T,S] scores."""
    shared = q.shape[2] // k.shape[2]
    keys, values = (x.repeat_interleave(shared, dim=2).transpose(1, 2) for x in (k, v))  # [B,H,S,E], [B,H,S,G]
    scale = q.shape[-1] ** -0.5 if scoring.scale is None else scoring.scale
    scores = ((q.transpose(1, 2) * scale) @ keys.transpose(2, 3)).float()  # [B,H,T,S]
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~allowed, -math.inf)
    if scoring.sinks is not None:
        sinks = scoring.sinks.float()[:, None, None].expand(*scores.shape[:-1], 1)
        weights = torch.cat((scores, sinks), dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    return (weights.to(values.dtype) @ values).transpose(1, 2)


def distances(length: int, device: torch.device) -> Tensor:
    """Query's place less key's within rows of `length`: int64 [1,1,T,T]."""
    places = torch.arange(length, device=device)
    return (places[:, None] - places)[None, None]


@dataclass(frozen=True)
class PackedAttention:
    """Causal attention that stays within a document; an `Attend`.

    Attributes:
        mask: bool [B,1,T,T], or None where plain causal attention gives the same.
    """

    keeps: ClassVar[bool] = False

    mask: Tensor | None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring = PLAIN) -> Tensor:
        """Attend by the layer's rule."""
        del layer
        T = q.shape[1]  # two places of one document are as far apart in the row as in the document
        return scored(q, k, v, self.mask, scoring, lambda: distances(T, q.device), is_causal=self.mask is None)


def holds_one_each(documents: Tensor) -> bool:
    """Whether each row is one document from its first place on, with or without padding behind it.

    The host waits for the device here, so this is asked of a tensor on the CPU where there is one.

    Args:
        documents: int [B,T], number of the document within its row, -1 on padding.
    """
    first = documents[:, :1]  # [B,1]
    one_document = (documents == first) | (documents < 0)
    later_only = (documents[:, 1:] < 0) | (documents[:, :-1] >= 0)  # no document resumes after padding
    return bool((one_document.all() & later_only.all() & (first >= 0).all()).item())


def packed(documents: Tensor, *, one_each: bool | None = None) -> PackedAttention:
    """Attention for rows of packed documents.

    A position sees itself and the earlier positions of its own document. Where every row holds one document,
    with or without padding behind it, the causal mask alone says that, and the fused causal kernel runs; what
    padding then attends to is of no consequence, because nothing attends to padding.

    Args:
        documents: int [B,T], number of the document within its row, -1 on padding.
        one_each: `holds_one_each(documents)`, where the caller found it out before the rows went to the device.
    """
    T = documents.shape[1]
    if holds_one_each(documents) if one_each is None else one_each:
        return PackedAttention(None)
    same = documents[:, :, None] == documents[:, None, :]  # [B,T,T]
    real = (documents >= 0)[:, :, None]
    causal = torch.ones(T, T, dtype=torch.bool, device=documents.device).tril()
    itself = torch.eye(T, dtype=torch.bool, device=documents.device)  # a softmax over nothing would be NaN
    return PackedAttention(((same & real & causal) | itself)[:, None])
