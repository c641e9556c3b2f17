"""Keys and values of the sequences that are being generated.

One row of fixed length for each; the running sequences occupy the first rows, so that a step reads them as a view
and copies nothing. Memory is rows x length, taken once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmctl.config.model import ModelConfig
from llmctl.model.attention import PLAIN, Attend, Scoring, distances, scored


class KVCache:
    """Keys and values, [layers, rows, length, KV, E] each.

    Args:
        config: the model's shape.
        rows: most sequences at one time.
        length: most tokens of one sequence.
        dtype: that of the model.
        device: that of the model.
    """

    def __init__(self, config: ModelConfig, rows: int, length: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.layers, rows, length, config.kv_heads, config.head_width)
        # Zeros, because what is masked out is still multiplied by 0, and 0 x NaN is NaN. On a CPU the operating system
        # gives the pages only when they are written.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def prefill(self, first: int, count: int) -> Attend:
        """Attention of new sequences, which fill rows `first` … `first + count - 1` from their beginning.

        Rows may be padded behind: what padding leaves in the cache lies beyond the sequence's length, where it is
        masked out until a real token overwrites it.
        """
        rows = slice(first, first + count)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring = PLAIN) -> Tensor:
            self.keys[layer, rows, : k.shape[1]] = k
            self.values[layer, rows, : v.shape[1]] = v
            return scored(q, k, v, None, scoring, lambda: distances(q.shape[1], q.device), is_causal=True)

        return attend

    def decode(self, lengths: Sequence[int]) -> Attend:
        """Attention of one new token for each of the first rows, which hold `lengths` tokens before it."""
        device = self.keys.device
        count, longest = len(lengths), max(lengths) + 1
        rows = torch.arange(count, device=device)
        places = torch.tensor(lengths, device=device)
        away = (places[:, None] - torch.arange(longest, device=device))[:, None, None]  # [B,1,1,S]
        mask = away >= 0 if min(lengths) + 1 < longest else None

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring = PLAIN) -> Tensor:
            self.keys[layer, rows, places] = k[:, 0]
            self.values[layer, rows, places] = v[:, 0]
            keys, values = self.keys[layer, :count, :longest], self.values[layer, :count, :longest]
            return scored(q, keys, values, mask, scoring, lambda: away)

        return attend

    def move(self, source: int, target: int, length: int) -> None:
        """Put the first `length` tokens of row `source` into row `target`, to close a gap."""
        self.keys[:, target, :length] = self.keys[:, source, :length]
        self.values[:, target, :length] = self.values[:, source, :length]
