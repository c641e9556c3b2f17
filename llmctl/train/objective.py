"""What the loop is given to learn, and what it gives back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from llmctl.model.likelihood import Tensors
from llmctl.model.transformer import Transformer
from llmctl.tokens.batch import Batch
from llmctl.train.loader import Feed, Loader, Plan, RowSource
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


@runtime_checkable
class Explores(Protocol):
    """An objective whose rows the model makes itself: they depend on its weights, so none is read ahead of need."""

    def explore(self, plan: Plan, strategy: Strategy) -> Feed:
        """What gives the steps of a run their rows; the model is prepared."""
        ...

    def figures(self) -> dict[str, float]:
        """What is to be logged of the step that was just taken, all finite."""
        ...

    def settle(self) -> None:
        """Keep what later steps learn from and the weights of now could not make again: a state is to be saved."""
        ...


def feed_of(objective: Objective, plan: Plan, strategy: Strategy) -> Feed:
    """What gives each step its rows: the model itself, or what is there already, read ahead."""
    return objective.explore(plan, strategy) if isinstance(objective, Explores) else Loader(objective.rows, plan)


def figures_of(objective: Objective) -> dict[str, float]:
    """Of a step whose rows the model made itself; none of others."""
    return objective.figures() if isinstance(objective, Explores) else {}


def settle(objective: Objective) -> None:
    """Before a state is saved: see `Explores.settle`."""
    if isinstance(objective, Explores):
        objective.settle()


@dataclass(frozen=True)
class Fitted:
    """What training gave.

    Attributes:
        weights: full fp32 weights by name on rank 0, None on other ranks.
        totals: steps, tokens, loss, tokens_per_s, and the held-out figures where there were held-out rows.
    """

    weights: dict[str, Tensor] | None
    totals: dict[str, int | float | str]
