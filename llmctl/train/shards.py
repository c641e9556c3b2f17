"""Which part of which parameter this rank's optimizer holds, and moving parts between ranks.

Under ZeRO an optimizer sees flat tensors, in which a rank's shares of many parameters lie end to end. What needs a
parameter as a whole (an orthogonalisation, a saved state that any number of ranks can read) goes through a `Layout`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class Piece:
    """A contiguous part of one parameter, possibly all of it, possibly nothing.

    Attributes:
        name: of the parameter.
        shape: of the whole parameter.
        held: the tensor that the optimizer updates: the parameter itself, or a flat shard.
        at: where the piece starts in the flattened `held`.
        start: where it starts in the flattened parameter.
        length: its elements.
    """

    name: str
    shape: torch.Size
    held: Tensor
    at: int
    start: int
    length: int

    def of(self, values: Tensor) -> Tensor:
        """The piece's view of a tensor that is laid out as `held`."""
        return values.view(-1)[self.at : self.at + self.length]

    def out_of(self, whole: Tensor) -> Tensor:
        """The piece's view of a whole parameter."""
        return whole.view(-1)[self.start : self.start + self.length]


class Layout:
    """All pieces of this rank, in one order that is the same on every rank.

    Attributes:
        pieces: one for each trained parameter, by name.
        rank: of this process.
        world_size: number of ranks.
        sharded: whether pieces are parts; otherwise every rank holds every parameter whole.

    Args:
        pieces: in that order.
        rank: of this process.
        world_size: number of ranks.
        sharded: as above.
        fetch: brings the values of a tensor that the optimizer updates into memory, where they are elsewhere.
    """

    def __init__(
        self,
        pieces: Iterable[Piece],
        *,
        rank: int = 0,
        world_size: int = 1,
        sharded: bool = False,
        fetch: Callable[[Tensor], AbstractContextManager[None]] | None = None,
    ) -> None:
        self.pieces = {piece.name: piece for piece in pieces}
        self.rank = rank
        self.world_size = world_size
        self.sharded = sharded
        self._fetch = fetch
        self._by_held: dict[int, list[Piece]] = {}
        for piece in self.pieces.values():
            self._by_held.setdefault(id(piece.held), []).append(piece)

    @classmethod
    def whole(cls, parameters: Mapping[str, nn.Parameter], rank: int = 0, world_size: int = 1) -> Layout:
        """The layout of an optimizer that updates the parameters themselves."""
        pieces = (Piece(name, p.shape, p, 0, 0, p.numel()) for name, p in parameters.items() if p.requires_grad)
        return cls(pieces, rank=rank, world_size=world_size)

    def within(self, held: Tensor) -> list[Piece]:
        """The pieces that lie in `held`, those without elements included."""
        return self._by_held[id(held)]

    def held(self) -> Iterator[Tensor]:
        """The tensors that the optimizer updates, each once; their values may be elsewhere than in memory."""
        for pieces in self._by_held.values():
            yield pieces[0].held

    def fetched(self) -> Iterator[Tensor]:
        """The same, each with its values in memory, and its optimizer state, until the next one is asked for."""
        for held in self.held():
            with self._fetch(held) if self._fetch is not None else nullcontext():
                yield held

    def gather(self, piece: Piece, values: Tensor, owner: int) -> Tensor | None:
        """On rank `owner` the whole parameter's values, in its shape; None elsewhere. Collective where sharded.

        Args:
            piece: this rank's.
            values: fp32, laid out as `piece.held`.
            owner: who gets them.
        """
        if not self.sharded:
            return values.view(piece.shape) if self.rank == owner else None
        whole = torch.zeros(piece.shape.numel(), dtype=torch.float32, device=values.device)
        piece.out_of(whole).copy_(piece.of(values))
        # As integers, of which all but one are 0: the sum is then exact to the bit, the sign of a zero included.
        distributed.reduce(whole.view(torch.int32), dst=owner)
        return whole.view(piece.shape) if self.rank == owner else None

    def spread(self, piece: Piece, whole: Tensor | None, owner: int, like: Tensor) -> Tensor:
        """What `owner` made of a whole parameter, in its shape and on every rank. Collective between ranks."""
        if self.world_size == 1:
            assert whole is not None, "the only rank owns everything"
            return whole
        given = torch.empty(piece.shape, dtype=like.dtype, device=like.device) if whole is None else whole.contiguous()
        distributed.broadcast(given, src=owner)
        return given
