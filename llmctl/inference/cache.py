"""Keys and values of the sequences that are being generated, in blocks, and the attention that reads them.

A step runs the tokens of all its sequences as one row, so that nothing is padded; only attention looks at each sequence
by itself, or at several that are alike at once.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from llmctl.config.model import ModelConfig
from llmctl.model.attention import PLAIN, Scoring, distances, scored

BLOCK_TOKENS = 16
TINY = 1e-30  # least scale
LEAST_SHARED = 4
"""Blocks that sequences must begin with in common for these to be read by themselves."""
UNEVEN = 1.25  # longest over shortest context of sequences that one call of attention reads


@dataclass(frozen=True)
class Span:
    """What a step runs of one sequence.

    Attributes:
        blocks: all of its blocks.
        start: tokens that the cache holds already.
        count: tokens that the step runs.
    """

    blocks: Sequence[int]
    start: int
    count: int

    @property
    def length(self) -> int:
        """Tokens that the last one of the step sees, itself included."""
        return self.start + self.count


class KVCache:
    """Keys and values, [layers, blocks, block, 2 x K, E], heads of keys before heads of values.

    Of latent attention the one vector that both are made from, [layers, blocks, block, 1, R + P] (see
    `LatentAttention`). Layers with a window keep all tokens, as every layer has the same blocks.

    Args:
        config: the model's shape.
        blocks: how many.
        dtype: that of the model.
        device: that of the model.
        block_tokens: tokens of one block.
        bits: 8 to keep whole numbers and a scale for each head of each token, the largest of which is 127; None to keep
            numbers of `dtype`.
    """

    def __init__(
        self,
        config: ModelConfig,
        blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        block_tokens: int = BLOCK_TOKENS,
        bits: Literal[8] | None = None,
    ) -> None:
        self.blocks, self.block_tokens = blocks, block_tokens
        self.heads, self.latent = config.kv_heads, config.latent
        # Zeros, because what is masked out is still multiplied by 0, and 0 x NaN is NaN. On a CPU the operating system
        # gives the pages only when they are written.
        shape = (config.layers, blocks, block_tokens, *kept_shape(config))
        self.data = torch.zeros(shape, dtype=torch.int8 if bits else dtype, device=device)
        self.scales = torch.zeros((*shape[:-1], 1), dtype=torch.float32, device=device) if bits else None
        self._dtype = dtype
        self._copies: dict[str, Tensor] = {}

    def attend(self, spans: Sequence[Span]) -> PagedAttention:
        """Attention of the tokens of `spans`, one behind the other as one row [1,N]; they should be in `step_order`."""
        places = [
            span.blocks[at // self.block_tokens] * self.block_tokens + at % self.block_tokens
            for span in spans
            for at in range(span.start, span.length)
        ]
        groups, first = [], 0
        for some in _groups(spans):
            groups.append(self._group(some, first))
            first += sum(span.count for span in some)
        return PagedAttention(self, torch.tensor(places, device=self.data.device), groups)

    def write(self, layer: int, places: Tensor, k: Tensor, v: Tensor) -> None:
        """Store keys and values of N tokens, [N,K,E] both, at their places."""
        merged = k if self.latent is not None else torch.cat((k, v), dim=1)
        if self.scales is not None:
            scales = (merged.float().abs().amax(dim=-1, keepdim=True) / 127).clamp(min=TINY)
            self.scales[layer].flatten(0, 1).index_copy_(0, places, scales)
            merged = (merged / scales).round().to(torch.int8)
        self.data[layer].flatten(0, 1).index_copy_(0, places, merged)

    def read(self, layer: int, held: Held) -> tuple[Tensor, Tensor]:
        """Keys and values of sequences, [B,S,K,E] both; what the next call may write over.

        They are a view where the blocks lie behind one another.
        """
        count, blocks = held.shape
        data = self._blocks(self.data[layer], held, "data")
        if self.scales is not None:
            data = (data * self._blocks(self.scales[layer], held, "scales")).to(self._dtype)
        merged = data.view(count, blocks * self.block_tokens, *data.shape[2:])[:, : held.length]
        if self.latent is not None:
            return merged, merged[..., : self.latent.kv_rank]
        return merged[:, :, : self.heads], merged[:, :, self.heads :]

    def _blocks(self, data: Tensor, held: Held, name: str) -> Tensor:
        """Blocks of one layer, [B x blocks,block,...]: in place, or copied behind one another."""
        if held.table is None:
            return data[held.first_block : held.first_block + held.shape[1]]
        # The same memory for every layer and step: taking it anew costs more than the copy.
        shape = (len(held.table), *data.shape[1:])
        copy = self._copies.get(name)
        if copy is None or copy.numel() < math.prod(shape):
            copy = self._copies[name] = torch.empty(math.prod(shape), dtype=data.dtype, device=data.device)
        return torch.index_select(data, 0, held.table, out=copy[: math.prod(shape)].view(shape))

    def _group(self, spans: Sequence[Span], first: int) -> Group:
        device = self.data.device
        width, length = spans[0].count, max(span.length for span in spans)
        starts = torch.tensor([span.start for span in spans], device=device)
        fresh = all(span.start == 0 for span in spans)

        def away() -> Tensor:
            if fresh:
                return distances(width, device)
            queries = starts[:, None] + torch.arange(width, device=device)  # [B,T]
            return (queries[:, :, None] - torch.arange(length, device=device))[:, None]  # [B,1,T,S]

        alone = width == 1 and all(span.length == length for span in spans)
        mask = None if fresh or alone else away() >= 0
        return Group(first, width, self._held(spans, 0), mask, away, self._shared(spans, mask), fresh=fresh)

    def _held(self, spans: Sequence[Span], skipped: int) -> Held:
        """All blocks of sequences but the first `skipped`, each sequence's padded with block 0."""
        length = max(span.length for span in spans)
        blocks = -(-length // self.block_tokens)
        tables = [[*span.blocks[skipped:blocks], *([0] * (blocks - len(span.blocks)))] for span in spans]
        return self._found(tables, length - skipped * self.block_tokens)

    def _found(self, tables: Sequence[Sequence[int]], length: int) -> Held:
        flat = [block for table in tables for block in table]
        behind = len(tables) == 1 and flat == list(range(flat[0], flat[0] + len(flat)))
        table = None if behind else torch.tensor(flat, device=self.data.device)
        return Held((len(tables), len(tables[0])), length, flat[0], table)

    def _shared(self, spans: Sequence[Span], mask: Tensor | None) -> SharedPrefix | None:
        """The blocks that all begin with, where they are enough and there is the kernel that tells the sums."""
        if len(spans) == 1 or spans[0].count > 1 or self.latent is not None or self.data.device.type != "cpu":
            return None
        most = min(span.start for span in spans) // self.block_tokens
        tables = [span.blocks[:most] for span in spans]
        count = next((place for place, some in enumerate(zip(*tables, strict=True)) if len(set(some)) > 1), most)
        if count < LEAST_SHARED:
            return None
        skipped = count * self.block_tokens
        bias = None
        if mask is not None:
            mask = mask[..., skipped:]
            bias = torch.zeros(mask.shape, dtype=self._dtype).masked_fill(~mask, -math.inf)
        prefix = self._found([spans[0].blocks[:count]], skipped)
        return SharedPrefix(prefix, self._held(spans, count), bias)


@dataclass(frozen=True)
class Held:
    """Where keys and values of B sequences are.

    Attributes:
        shape: B and how many blocks each has.
        length: S, tokens of the longest.
        first_block: where all blocks lie behind one another, the first.
        table: int64 [B x blocks]; None where they lie behind one another.
    """

    shape: tuple[int, int]
    length: int
    first_block: int
    table: Tensor | None


@dataclass(frozen=True)
class SharedPrefix:
    """A beginning that B sequences share, read once for all of them.

    Attributes:
        prefix: its blocks, as of one sequence.
        tails: what each sequence has behind it.
        bias: added to the scores of the tails, [B,1,1,S]; None for nothing.
    """

    prefix: Held
    tails: Held
    bias: Tensor | None


@dataclass(frozen=True)
class Group:
    """Sequences that one call of attention serves: B of them, each with T tokens in the step.

    Attributes:
        first: place of their first token in the row.
        width: T.
        held: all that they see.
        mask: bool [B,1,T,S]; None where a causal mask, or none, says the same.
        away: gives the query's place less the key's, broadcastable to [B,1,T,S].
        shared: what they share, where it is worth reading by itself.
        fresh: whether nothing was in the cache before.
    """

    first: int
    width: int
    held: Held
    mask: Tensor | None
    away: Callable[[], Tensor]
    shared: SharedPrefix | None
    fresh: bool


@dataclass(frozen=True)
class PagedAttention:
    """See `KVCache.attend`."""

    keeps: ClassVar[bool] = True

    cache: KVCache
    places: Tensor  # int64 [N], of the row's tokens in the cache
    groups: Sequence[Group]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring = PLAIN) -> Tensor:
        """Store the row's keys and values and attend: [1,N,H,E] to [1,N,H,G]."""
        self.cache.write(layer, self.places, k[0], v[0])  # all of them first: a sequence may share what another writes
        mixed = []
        for group in self.groups:
            count, width = group.held.shape[0], group.width
            rows = slice(group.first, group.first + count * width)
            queries = q[0, rows].view(count, width, *q.shape[2:])  # [B,T,H,E]
            if group.shared is not None and scoring.is_plain:
                mixed.append(self._by_parts(layer, queries, group.shared, scoring.scale).flatten(0, 1))
                continue
            if group.fresh and self.cache.scales is None:  # what was rounded is read as all later tokens read it
                keys, values = (x[0, rows].view(count, width, *x.shape[2:]) for x in (k, v))
            else:
                keys, values = self.cache.read(layer, group.held)
            causal = group.mask is None and width > 1
            out = scored(queries, keys, values, group.mask, scoring, group.away, is_causal=causal)
            mixed.append(out.flatten(0, 1))
        return (mixed[0] if len(mixed) == 1 else torch.cat(mixed))[None]

    def _by_parts(self, layer: int, q: Tensor, shared: SharedPrefix, scale: float | None) -> Tensor:
        """Attention to a shared prefix by all queries at once, and to each sequence's own rest: [B,1,H,E] to the same.

        The two are put together by the sums of their softmaxes (Juravsky et al. 2024, Hydragen, arXiv:2402.05099).
        """
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001 (gives the sums too)
        B, _, H, E = q.shape
        K = self.cache.heads
        keys, values = self.cache.read(layer, shared.prefix)  # [1,S,K,E]
        by_head = q.view(B, K, H // K, E)
        gathered = by_head.transpose(0, 1).reshape(1, K, B * H // K, E)  # one long row of queries for each head of keys
        first, first_sum = kernel(gathered, keys.transpose(1, 2), values.transpose(1, 2), scale=scale)
        keys, values = self.cache.read(layer, shared.tails)
        rest, rest_sum = kernel(
            by_head, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=shared.bias, scale=scale
        )
        first = first.view(K, B, H // K, E).transpose(0, 1)
        share = torch.sigmoid(first_sum.view(K, B, H // K).transpose(0, 1) - rest_sum)[..., None].to(q.dtype)
        return torch.lerp(rest, first, share).reshape(B, 1, H, E)


def kept_shape(config: ModelConfig) -> tuple[int, int]:
    """Heads and width of what one layer keeps of one token."""
    if config.latent is not None:
        return 1, config.latent.kv_rank + config.latent.rope_width
    return 2 * config.kv_heads, config.head_width


def cache_for(
    config: ModelConfig,
    rows: int,
    tokens: int | None,
    dtype: torch.dtype,
    device: torch.device,
    bits: Literal[8] | None = None,
) -> KVCache:
    """The cache for `rows` sequences; see `Options` for `tokens` and `bits`."""
    blocks = -(-config.context // BLOCK_TOKENS)  # of one sequence
    if tokens is None:
        heads, width = kept_shape(config)
        of_head = width * dtype.itemsize if bits is None else width + torch.float32.itemsize
        of_block = config.layers * BLOCK_TOKENS * heads * of_head
        wanted = min(rows * blocks, memory_bytes(device) // (2 if device.type == "cuda" else 8) // of_block)
    else:
        wanted = -(-tokens // BLOCK_TOKENS)
    return KVCache(config, max(blocks, wanted), dtype, device, bits=bits)


def memory_bytes(device: torch.device) -> int:
    """Memory of the machine, or what is free of an accelerator's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def step_order(spans: Sequence[Span]) -> list[int]:
    """Places of `spans` in an order that puts those behind one another which `KVCache.attend` can serve at once."""
    alike = _alike(spans)
    return sorted(range(len(spans)), key=lambda index: (*alike[index], spans[index].length))


def _alike(spans: Sequence[Span]) -> list[tuple[int, bool, int]]:
    """What spans of one group have in common: how many tokens, whether any are in the cache, and a first block.

    The first block counts where several sequences share it.
    """
    users = Counter(span.blocks[0] for span in spans)
    return [
        (span.count, span.start > 0, span.blocks[0] if users[span.blocks[0]] > 1 and span.count == 1 else -1)
        for span in spans
    ]


def _groups(spans: Sequence[Span]) -> list[list[Span]]:
    """Runs of spans that are alike and have about the same length."""
    groups: list[list[Span]] = []
    before = None
    for span, alike in zip(spans, _alike(spans), strict=True):
        first = groups[-1][0] if groups else span
        if alike == before and first.length <= span.length <= first.length * UNEVEN + BLOCK_TOKENS:
            groups[-1].append(span)
        else:
            groups.append([span])
        before = alike
    return groups
