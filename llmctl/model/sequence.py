"""Rows cut into parts, one for each rank of a group, and attention over whole rows all the same.

Ulysses (Jacobs et al. 2023, arXiv:2309.14509): a rank computes N-th parts of rows with all heads; around attention the
group exchanges them for whole rows with an N-th of the heads. So what documents see is decided as on one rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed
from torch.nn import functional

from llmctl.model.attention import PLAIN, Attend, Scoring


class _Exchange(torch.autograd.Function):
    """Part i of each rank goes to rank i: [N,…] to [N,…], by sender. It is its own transpose."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: Any) -> Tensor:
        ctx.group = group
        received = torch.empty_like(parts, memory_format=torch.contiguous_format)
        distributed.all_to_all_single(received, parts.contiguous(), group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Exchange.apply(gradients[0], ctx.group), None  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class SharedRows:
    """This rank among those that share rows.

    Attributes:
        part: number of this rank's part of each row, from 0.
        parts: into how many a row is cut, N.
        group: the ranks' process group.
    """

    part: int
    parts: int
    group: Any

    @classmethod
    def join(cls, parts: int) -> SharedRows:
        """The group of consecutive ranks that this one belongs to; called by every rank at once."""
        rank, size = distributed.get_rank(), distributed.get_world_size()
        groups = [distributed.new_group(range(first, first + parts)) for first in range(0, size, parts)]
        return cls(rank % parts, parts, groups[rank // parts])

    def of(self, rows: Tensor) -> Tensor:
        """This rank's part of [B,T,…]: [B,T/N,…]."""
        return rows[:, columns(rows.shape[1], self.part, self.parts)]

    def spread(self, hidden: Tensor) -> Tensor:
        """[B,T/N,D] in its place in [B,T,D], zero elsewhere."""
        length = hidden.shape[1]
        return functional.pad(hidden, (0, 0, self.part * length, (self.parts - 1 - self.part) * length))

    def whole_rows(self, x: Tensor) -> Tensor:
        """[B,T/N,H,E], a part of the rows, to [B,T,H/N,E], this rank's share of the heads."""
        B, length, H, E = x.shape
        sent = x.view(B, length, self.parts, H // self.parts, E).movedim(2, 0)  # [N,B,T/N,H/N,E], by heads
        received: Tensor = _Exchange.apply(sent, self.group)  # type: ignore[no-untyped-call]
        return received.movedim(0, 1).reshape(B, self.parts * length, H // self.parts, E)

    def all_heads(self, x: Tensor) -> Tensor:
        """[B,T,H/N,E] back to [B,T/N,H,E]."""
        B, T, share, E = x.shape
        sent = x.reshape(B, self.parts, T // self.parts, share, E).movedim(1, 0)  # [N,B,T/N,H/N,E], by place
        received: Tensor = _Exchange.apply(sent, self.group)  # type: ignore[no-untyped-call]
        return received.movedim(0, 2).reshape(B, T // self.parts, self.parts * share, E)

    def share(self, of_heads: Tensor) -> Tensor:
        """This rank's share of something that each of H heads has: [H] to [H/N]."""
        return of_heads.chunk(self.parts)[self.part]


@dataclass(frozen=True)
class CutAttention:
    """An `Attend` of parts of rows.

    Attributes:
        sequence: the ranks that hold the parts.
        attend: attention of the whole rows.
    """

    keeps: ClassVar[bool] = False

    sequence: SharedRows
    attend: Attend

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring = PLAIN) -> Tensor:
        """[B,T/N,H,E], [B,T/N,K,E] and [B,T/N,K,G] to [B,T/N,H,G]."""
        ours = self.sequence
        if scoring.slopes is not None:
            scoring = replace(scoring, slopes=ours.share(scoring.slopes))
        if scoring.sinks is not None:
            scoring = replace(scoring, sinks=ours.share(scoring.sinks))
        q, k, v = (ours.whole_rows(x) for x in (q, k, v))
        return ours.all_heads(self.attend(layer, q, k, v, scoring))


def columns(length: int, part: int, parts: int) -> slice:
    """The columns of a part of rows of `length`, which is a multiple of `parts`."""
    each = length // parts
    return slice(part * each, (part + 1) * each)
