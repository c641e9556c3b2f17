"""Keys and values of the sequences that are being generated, in blocks, and the attention that reads them.

A step runs the tokens of all its sequences as one row, so that nothing is padded; only attention looks at each sequence
by itself, or at several that are alike at once.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from llmctl.config.model import ModelConfig
from llmctl.inference import kernel
from llmctl.model.attention import PLAIN, Scoring, distances, scored

BLOCK_TOKENS = 16
TINY = 1e-30  # least scale
FEW_TOKENS = 8
"""Up to so many tokens of one sequence attend one by one, through the kernel, where there is one for the cache."""
UNEVEN = 1.25  # longest over shortest context of sequences that one call of attention reads


@dataclass(slots=True)
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

    Attributes:
        data: what is kept, of every layer.
        scales: of numbers in 8 bits.
        serves_rows: whether the kernel attends to it.
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
        # Zeros, because what is masked out is still multiplied by 0, and 0 x NaN is NaN.
        shape = (config.layers, blocks, block_tokens, *kept_shape(config))
        self.data = _zeros(shape, torch.int8 if bits else dtype, device)
        self.scales = _zeros((*shape[:-1], 1), torch.float32, device) if bits else None
        self.serves_rows = self.latent is None and kernel.serves_heads(self.data)
        self._dtype = dtype
        self._copies: dict[str, Tensor] = {}

    def attend(self, spans: Sequence[Span]) -> PagedAttention:
        """Attention of the tokens of `spans`, one behind the other as one row [1,N]; they should be in `step_order`."""
        size = self.block_tokens
        places = [span.blocks[at // size] * size + at % size for span in spans for at in range(span.start, span.length)]
        many = (at for at, span in enumerate(spans) if span.count > FEW_TOKENS)
        few = next(many, len(spans)) if self.serves_rows else 0
        rows = _rows(spans[:few]) if few else None
        groups, first = [], 0 if rows is None else len(rows.places)
        for some in _groups(spans[few:]):
            groups.append(self._group(some, first))
            first += sum(span.count for span in some)
        return PagedAttention(self, torch.tensor(places, device=self.data.device), rows, groups)

    def write(self, layer: int, places: Tensor, k: Tensor, v: Tensor) -> None:
        """Store keys and values of N tokens, [N,K,E] both, at their places."""
        if self.serves_rows and kernel.keep(k, v, self.data[layer], places):
            return
        merged = k if self.latent is not None else torch.cat((k, v), dim=1)
        if self.scales is not None:
            scales = (merged.float().abs().amax(dim=-1, keepdim=True) / 127).clamp(min=TINY)
            self.scales[layer].flatten(0, 1).index_copy_(0, places, scales)
            merged = (merged / scales).round().to(torch.int8)
        self.data[layer].flatten(0, 1).index_copy_(0, places, merged)

    def copy(self, blocks: Sequence[tuple[int, int]]) -> None:
        """Copy what blocks hold, in every layer: pairs of one to read and one to write."""
        given, to = (torch.tensor(some, device=self.data.device) for some in zip(*blocks, strict=True))
        for data in (self.data, self.scales):
            if data is not None:
                data.index_copy_(1, to, data.index_select(1, given))

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
        return Group(first, width, self._held(spans), mask, away, fresh=fresh)

    def _held(self, spans: Sequence[Span]) -> Held:
        length = max(span.length for span in spans)
        tables = _tables(spans, -(-length // self.block_tokens))
        flat = [block for table in tables for block in table]
        behind = len(tables) == 1 and flat == list(range(flat[0], flat[0] + len(flat)))
        table = None if behind else torch.tensor(flat, device=self.data.device)
        return Held((len(tables), len(tables[0])), length, flat[0], table)


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
class Group:
    """Sequences that one call of attention serves: B of them, each with T tokens in the step.

    Attributes:
        first: place of their first token in the row.
        width: T.
        held: all that they see.
        mask: bool [B,1,T,S]; None where a causal mask, or none, says the same.
        away: gives the query's place less the key's, broadcastable to [B,1,T,S].
        fresh: whether nothing was in the cache before.
    """

    first: int
    width: int
    held: Held
    mask: Tensor | None
    away: Callable[[], Tensor]
    fresh: bool


@dataclass(frozen=True)
class PagedAttention:
    """See `KVCache.attend`."""

    keeps: ClassVar[bool] = True

    cache: KVCache
    places: Tensor  # int64 [N], of the row's tokens in the cache
    rows: kernel.Rows | None  # of the first tokens of the row
    groups: Sequence[Group]  # of those behind them

    @property
    def all_rows(self) -> bool:
        """Whether the step has single tokens alone, and a cache in the model's own numbers."""
        return not self.groups and self.rows is not None and self.cache.scales is None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring = PLAIN) -> Tensor:
        """Store the row's keys and values and attend: [1,N,H,E] to [1,N,H,G]."""
        self.cache.write(layer, self.places, k[0], v[0])  # all of them first: a sequence may share what another writes
        mixed = []
        if self.rows is not None:
            scales = None if self.cache.scales is None else self.cache.scales[layer]
            mixed.append(
                kernel.attend(q[0, : len(self.rows.places)], self.cache.data[layer], scales, self.rows, scoring)
            )
        for group in self.groups:
            count, width = group.held.shape[0], group.width
            rows = slice(group.first, group.first + count * width)
            queries = q[0, rows].view(count, width, *q.shape[2:])  # [B,T,H,E]
            if group.fresh and self.cache.scales is None:  # what was rounded is read as all later tokens read it
                keys, values = (x[0, rows].view(count, width, *x.shape[2:]) for x in (k, v))
            else:
                keys, values = self.cache.read(layer, group.held)
            causal = group.mask is None and width > 1
            out = scored(queries, keys, values, group.mask, scoring, group.away, is_causal=causal)
            mixed.append(out.flatten(0, 1))
        return (mixed[0] if len(mixed) == 1 else torch.cat(mixed))[None]


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU the operating system gives the pages only when they are written, where torch writes them all.

    Small pages: numpy asks for huge ones, and a first short answer, which needs a little of every layer, would wait
    for 2 MiB of each to be cleared.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not size:
        return torch.zeros(*shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # lives as long as the tensor
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8).view(dtype).view(*shape)


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
    return sorted(range(len(spans)), key=lambda index: (*_alike(spans[index]), spans[index].length))


def _alike(span: Span) -> tuple[int, bool]:
    """What spans of one group have in common: how many tokens, and whether any are in the cache."""
    return span.count, span.start > 0


def _rows(spans: Sequence[Span]) -> kernel.Rows:
    """The tokens of spans, one by one."""
    places = [(number, seen + 1) for number, span in enumerate(spans) for seen in range(span.start, span.length)]
    tables = _tables(spans, max(len(span.blocks) for span in spans))
    # By numpy: torch takes 100 us for the tables of 64 sequences, and numpy 25.
    return kernel.Rows(*(torch.from_numpy(np.array(some, dtype=np.int32)) for some in (tables, places)))


def _tables(spans: Sequence[Span], blocks: int) -> list[list[int]]:
    """The first `blocks` blocks of each span, padded with block 0."""
    return [[*span.blocks[:blocks], *([0] * (blocks - len(span.blocks)))] for span in spans]


def _groups(spans: Sequence[Span]) -> list[list[Span]]:
    """Runs of spans that are alike and have about the same length."""
    groups: list[list[Span]] = []
    before = None
    for span in spans:
        first, alike = groups[-1][0] if groups else span, _alike(span)
        if alike == before and first.length <= span.length <= first.length * UNEVEN + BLOCK_TOKENS:
            groups[-1].append(span)
        else:
            groups.append([span])
        before = alike
    return groups
