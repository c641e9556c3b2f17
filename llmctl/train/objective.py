"""What the loop is given to learn, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from llmctl.model.likelihood import Tensors
from llmctl.model.transformer import Transformer
from llmctl.train.loader import RowSource


class Objective(Protocol):
    """What is learned: rows, and the loss of some of them."""

    @property
    def rows(self) -> RowSource:
        """Where the rows of a step come from."""
        ...

    def loss(self, model: Transformer, batch: Tensors) -> Tensor:
        """Sum of the loss over the batch's targets: a scalar, to be divided by `Batch.targets` over all ranks."""
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
