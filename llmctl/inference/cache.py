"""Keys and values of the sequences that are being generated.

One row of fixed length for each; the running sequences occupy the first rows, so that a step reads them as a view
and copies nothing. Memory is rows x length, taken once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmctl.config.model import ModelConfig
from llmctl.model.attention import PLAIN, Attend, Scoring, distances, scored


class KVCache:
    """Keys and values, [layers, rows, length, K, E] each; of latent attention the one vector that both are made from.

    Args:
        config: the model's shape.
        rows: most sequences at one time.
        length: most tokens of one sequence.
        dtype: that of the model.
        device: that of the model.
    """

    def __init__(self, config: ModelConfig, rows: int, length: int, dtype: torch.dtype, device: torch.device) -> None:
        heads, width, latent = config.kv_heads, config.head_width, config.latent
        if latent is not None:
            heads, width = 1, latent.kv_rank + latent.rope_width
        shape = (config.layers, rows, length, heads, width)
        # Zeros, because what is masked out is still multiplied by 0, and 0 x NaN is NaN. On a CPU the operating system
        # gives the pages only when they are written.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        if latent is None:
            self.values = torch.zeros(shape, dtype=dtype, device=device)
        else:
            self.values = self.keys[..., : latent.kv_rank]  # of the same memory: see LatentAttention

    def prefill(self, first: int, count: int) -> Attend:
        """Attention of new sequences, which fill rows `first` … `first + count - 1` from their beginning.

        Rows may be padded behind: what padding leaves in the cache lies beyond the sequence's length, where it is
        masked out until a real token overwrites it.
        """
        return _Prefill(self, slice(first, first + count))

    def decode(self, lengths: Sequence[int]) -> Attend:
        """Attention of one new token for each of the first rows, which hold `lengths` tokens before it."""
        device = self.keys.device
        longest = max(lengths) + 1
        places = torch.tensor(lengths, device=device)
        away = (places[:, None] - torch.arange(longest, device=device))[:, None, None]  # [B,1,1,S]
        mask = away >= 0 if min(lengths) + 1 < longest else None
        return _Decode(self, torch.arange(len(lengths), device=device), places, away, mask)

    def move(self, source: int, target: int, length: int) -> None:
        """Put the first `length` tokens of row `source` into row `target`, to close a gap."""
        self.keys[:, target, :length] = self.keys[:, source, :length]
        self.values[:, target, :length] = self.values[:, source, :length]


@dataclass(frozen=True)
class _Prefill:
    """See `KVCache.prefill`."""

    keeps: ClassVar[bool] = True

    cache: KVCache
    rows: slice

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring = PLAIN) -> Tensor:
        self.cache.keys[layer, self.rows, : k.shape[1]] = k
        self.cache.values[layer, self.rows, : v.shape[1]] = v
        return scored(q, k, v, None, scoring, lambda: distances(q.shape[1], q.device), is_causal=True)


@dataclass(frozen=True)
class _Decode:
    """See `KVCache.decode`."""

    keeps: ClassVar[bool] = True

    cache: KVCache
    rows: Tensor  # int64 [B]
    places: Tensor  # int64 [B], of the new tokens
    away: Tensor  # int64 [B,1,1,S], how far before them each place in the cache is
    mask: Tensor | None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring = PLAIN) -> Tensor:
        self.cache.keys[layer, self.rows, self.places] = k[:, 0]
        self.cache.values[layer, self.rows, self.places] = v[:, 0]
        count, longest = self.away.shape[0], self.away.shape[-1]
        keys, values = self.cache.keys[layer, :count, :longest], self.cache.values[layer, :count, :longest]
        return scored(q, keys, values, self.mask, scoring, lambda: self.away)
