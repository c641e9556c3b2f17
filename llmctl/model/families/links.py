"""How our parameters and the tensors of another layout stand to one another: the same, turned, joined or stacked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llmctl.config.model import ModelConfig

Convert = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def _as_they_are(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return tensors


@dataclass(frozen=True)
class Link:
    """A few of our parameters and the tensors that hold the same numbers.

    Attributes:
        ours: names of parameters and buffers of the model.
        theirs: names of tensors.
        read: from theirs to ours, in the order of the names; works on the meta device too.
        write: its inverse.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    read: Convert = _as_they_are
    write: Convert = _as_they_are

    @property
    def is_plain(self) -> bool:
        """Whether it is one tensor, as it is."""
        return self.read is _as_they_are


class Stored(Protocol):
    """What is known of a tensor without reading it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of its dimensions."""
        ...


Shapes = Mapping[str, torch.Size]
"""Of our parameters and buffers, by name."""


def same(ours: str, theirs: str) -> Link:
    """One tensor, as it is."""
    return Link((ours,), (theirs,))


def transposed(ours: str, theirs: str) -> Link:
    """A matrix that they multiply from the other side."""

    def turn(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [tensor.T for tensor in tensors]

    return Link((ours,), (theirs,), turn, turn)


def joined(ours: Sequence[str], theirs: str, rows: Sequence[int], *, turned: bool = False) -> Link:
    """Several of ours, of so many rows each, that they keep one below the other, with `turned` transposed."""

    def read(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        (whole,) = tensors
        return torch.split(whole.T if turned else whole, list(rows))

    def write(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        whole = torch.cat(list(tensors))
        return [whole.T if turned else whole]

    return Link(tuple(ours), (theirs,), read, write)


def stacked(ours: str, theirs: Sequence[str]) -> Link:
    """One of ours whose slices they keep as tensors of their own."""

    def read(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [torch.stack(list(tensors))]

    def write(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return tensors[0].unbind()

    return Link((ours,), tuple(theirs), read, write)


def interleaved(ours: str, theirs: str, group: int, rotary: int) -> Link:
    """Rows in groups of `group`, whose last `rotary` they keep as pairs side by side (x0 x1, x2 x3, …).

    Here the first halves of all pairs come before the second halves, as `rotate` takes them.
    """

    def order(inverse: bool) -> Tensor:
        turned = torch.arange(rotary).view(-1, 2).T.flatten()  # x0 x2 … x1 x3 …
        if inverse:
            turned = turned.argsort()
        return torch.cat((torch.arange(group - rotary), group - rotary + turned))

    def read(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [_reordered(tensors[0], group, order(inverse=False))]

    def write(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [_reordered(tensors[0], group, order(inverse=True))]

    return Link((ours,), (theirs,), read, write)


def _reordered(tensor: Tensor, group: int, order: Tensor) -> Tensor:
    grouped = tensor.view(-1, group, *tensor.shape[1:])
    return grouped.index_select(1, order.to(tensor.device)).view(tensor.shape)


def their_shapes(links: Sequence[Link], ours: Shapes) -> dict[str, torch.Size]:
    """Shapes of their tensors, from those of our parameters."""
    shapes: dict[str, torch.Size] = {}
    for link in links:
        written = link.write([torch.empty(ours[name], device="meta") for name in link.ours])
        shapes.update(zip(link.theirs, (tensor.shape for tensor in written), strict=True))
    return shapes


def our_shapes(config: ModelConfig, vocab_size: int) -> dict[str, torch.Size]:
    """Shapes of everything that a model of this shape keeps, by name; nothing is allocated."""
    from llmctl.model.transformer import outline

    return {name: value.shape for name, value in outline(config, vocab_size).state_dict().items()}
