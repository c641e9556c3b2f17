"""What the loop is given to learn, and what it gives back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from llmctl.model.likelihood import Tensors
from llmctl.model.transformer import Transformer
from llmctl.tokens.batch import Batch
from llmctl.train.loader import RowSource
from llmctl.train.strategy import Strategy


class Objective(Protocol):
    """What is learned: rows, and the loss of some of them."""

    @property
    def rows(self) -> RowSource:
        """Where the rows of a step come from."""
        ...

    def loss(self, model: Transformer, batch: Tensors) -> Tensor:
        """Sum of the loss over the batch's targets: a scalar, to be divided by `Batch.targets` over all ranks."""
        ...


@runtime_checkable
class LooksAhead(Protocol):
    """An objective whose loss depends on a figure of the whole step, which must be known before its gradient."""

    def look_ahead(self, batches: Iterable[Batch], strategy: Strategy) -> None:
        """Compute that figure over the micro-batches of all ranks; collective."""
        ...


@dataclass(frozen=True)
class Fitted:
    """What training gave.

    Attributes:
        weights: full fp32 weights by name on rank 0, None on other ranks.
        totals: steps, tokens, loss, tokens_per_s, and the held-out figures where there were held-out rows.
    """

    weights: dict[str, Tensor] | None
    totals: dict[str, int | float | str]
