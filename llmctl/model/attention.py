"""How queries meet keys: the `Attend` interface, and attention within the documents of packed rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""`attend(layer, q [B,T,H,D], k [B,T,KV,D], v [B,T,KV,D]) -> [B,T,H,D]`; q and k carry their positions already."""


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, is_causal: bool = False) -> Tensor:
    """Attention softmax(q k' / sqrt(D)) v with each of the KV heads shared by H / KV query heads.

    Args:
        q: [B,T,H,D].
        k: [B,S,KV,D].
        v: [B,S,KV,D].
        mask: bool, broadcastable to [B,H,T,S], True where attention is allowed; None for all of it.
        is_causal: with no mask and T = S, each position sees itself and what comes before.

    Returns:
        [B,T,H,D] in the dtype of q.
    """
    # SDPA wants the heads before the positions: [B,H,T,D].
    mixed = functional.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=is_causal,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return mixed.transpose(1, 2)


@dataclass(frozen=True)
class PackedAttention:
    """Causal attention that stays within a document; an `Attend`.

    Attributes:
        mask: bool [B,1,T,T], or None where plain causal attention gives the same.
    """

    mask: Tensor | None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend; every layer alike."""
        del layer
        return scaled_dot_product(q, k, v, self.mask, is_causal=self.mask is None)


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
