"""Loss on rows that were not trained on, in nats, perplexity and bits per byte."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.model.likelihood import Tensors, target_losses
from llmctl.model.transformer import Transformer
from llmctl.tokens.batch import IGNORE, Batch
from llmctl.tokens.order import permuted
from llmctl.train.loader import Plan, RowSource
from llmctl.train.strategy import Call, Strategy


class Measured(Protocol):
    """One measurement on held-out rows."""

    @property
    def loss(self) -> float:
        """Mean loss; NaN where there was nothing to predict."""
        ...

    @property
    def figures(self) -> dict[str, int | float]:
        """By the names of metrics and totals, all finite."""
        ...

    @property
    def told(self) -> str:
        """The same in a line."""
        ...


class HeldOutSource(Protocol):
    """Held-out rows, and what is measured on them."""

    @property
    def rows(self) -> RowSource:
        """Of which a fixed sample is scored."""
        ...

    def bytes_of(self, batch: Batch) -> int:
        """Bytes that the targets of a batch stand for; 0 where the loss is not one of text."""
        ...

    def look_ahead(self, batches: Iterable[Batch], strategy: Strategy) -> None:
        """Compute what the figures of every batch depend on, over the sample of all ranks; collective."""
        ...

    def sums(self, model: Transformer, batch: Tensors) -> Tensor:
        """Figures of one batch that add up over batches and ranks, fp64 [K]."""
        ...

    def total(self, values: Sequence[float]) -> Measured:
        """What K summed figures say."""
        ...


@dataclass(frozen=True)
class HeldOut:
    """Sums over targets.

    Attributes:
        nll: nats over all targets.
        targets: how many.
        text_nll: nats over the targets that stand for bytes (an end-of-document mark does not).
        bytes: bytes that those targets stand for.
    """

    nll: float = 0.0
    targets: int = 0
    text_nll: float = 0.0
    bytes: int = 0

    @property
    def loss(self) -> float:
        """Mean nats per target; NaN where there was none."""
        return self.nll / self.targets if self.targets else math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text: comparable between tokenizers. NaN where no target stands for a byte."""
        return self.text_nll / math.log(2) / self.bytes if self.bytes else math.nan

    @property
    def figures(self) -> dict[str, int | float]:
        """By the names of metrics and totals; what is undefined (no targets, no text) is left out."""
        figures = {"heldout_loss": self.loss, "heldout_bits_per_byte": self.bits_per_byte}
        defined = {name: value for name, value in figures.items() if math.isfinite(value)}
        return {**defined, "heldout_targets": self.targets}

    @property
    def told(self) -> str:
        """Loss and bits per byte."""
        return f"held-out loss {self.loss:.4f}, {self.bits_per_byte:.4f} bits per byte"


@dataclass(frozen=True)
class HeldOutRows:
    """Held-out text, of which each token is predicted; a `HeldOutSource`.

    Attributes:
        rows: of which a fixed sample is scored.
        byte_lengths: int32 [V], bytes that each id stands for.
    """

    rows: RowSource
    byte_lengths: NDArray[np.int32]

    @functools.cached_property
    def _lengths(self) -> Tensor:
        return torch.from_numpy(self.byte_lengths.astype(np.int64))

    def bytes_of(self, batch: Batch) -> int:
        """Bytes that the targets of a batch stand for."""
        return int(self.byte_lengths[batch.labels[batch.labels != IGNORE]].sum(dtype=np.int64))

    def look_ahead(self, batches: Iterable[Batch], strategy: Strategy) -> None:
        """Each token's loss depends on its own row alone."""

    def sums(self, model: Transformer, batch: Tensors) -> Tensor:
        """Those of `HeldOut`."""
        return sums(model, batch, self._lengths.to(batch.tokens.device))

    def sums_of(self, losses: Tensor, targets: Tensor) -> Tensor:
        """The same of losses that are there already, [N] each."""
        return sums_of_losses(losses, targets, self._lengths.to(losses.device))

    def total(self, values: Sequence[float]) -> HeldOut:
        """The `HeldOut`."""
        return total(values)


@torch.no_grad()
def sample_scored(
    held: HeldOutSource, wanted: int, plan: Plan, strategy: Strategy, done: Callable[[int], None] | None = None
) -> Measured:
    """Score a fixed sample of held-out rows, each rank a share of it; collective.

    Args:
        held: the rows.
        wanted: how many of them; 0 for all.
        plan: how many rows there are in one forward pass, and how ranks share them.
        strategy: what computes.
        done: told how many passes are finished.
    """
    count = min(wanted or held.rows.count, held.rows.count)
    sample = np.sort(permuted(0, np.arange(count), held.rows.count))
    parts = [sample[start : start + plan.micro_rows] for start in range(0, count, plan.micro_rows)]

    def share() -> Iterator[Batch]:
        for first in range(0, len(parts), plan.world_size):
            mine = first + plan.rank
            batch = plan.own_columns(held.rows.batch(parts[min(mine, len(parts) - 1)]))
            # Every rank takes part in every pass, as sharded weights are gathered in step; a surplus is blank.
            yield batch if mine < len(parts) else batch.without_targets()

    held.look_ahead(share(), strategy)
    values = accumulated(share(), held.sums, strategy.device, strategy.forward, done)
    return held.total(strategy.sum(values))


def accumulated(
    batches: Iterable[Batch],
    sums_of: Callable[[Transformer, Tensors], Tensor],
    device: torch.device,
    forward: Callable[[Call], Tensor],
    done: Callable[[int], None] | None = None,
) -> list[float]:
    """The figures of all batches, added up; none where there is no batch.

    Args:
        batches: what to score.
        sums_of: figures of one batch, fp64 [K].
        device: where the model is.
        forward: calls a function of the model, under the precision that is wanted.
        done: told how many batches are finished.
    """
    values: Tensor | None = None
    for number, batch in enumerate(batches, start=1):
        figures = forward(_scoring(sums_of, Tensors.of(batch, device)))
        values = figures if values is None else values + figures
        if done is not None:
            done(number)
    return [] if values is None else [float(value) for value in values.tolist()]


def _scoring(sums_of: Callable[[Transformer, Tensors], Tensor], batch: Tensors) -> Call:
    return lambda model: sums_of(model, batch)


def sums(model: Transformer, batch: Tensors, byte_lengths: Tensor) -> Tensor:
    """[nll, targets, text_nll, bytes] of one batch, fp64 [4].

    Args:
        model: the model.
        batch: packed rows.
        byte_lengths: int64 [V], bytes that each id stands for.
    """
    return sums_of_losses(*target_losses(model, batch), byte_lengths)


def sums_of_losses(losses: Tensor, targets: Tensor, byte_lengths: Tensor) -> Tensor:
    """`sums` of the loss and id of each target, [N] each."""
    lengths = byte_lengths[targets]
    exact = losses.double()
    return torch.stack(
        [
            exact.sum(),
            torch.tensor(targets.numel(), dtype=torch.float64, device=exact.device),
            exact[lengths > 0].sum(),
            lengths.sum().double(),
        ]
    )


def total(values: Sequence[float]) -> HeldOut:
    """The `HeldOut` of four sums in the order of `sums`; of none where nothing was scored."""
    nll, targets, text_nll, count = values or (0.0, 0, 0.0, 0)
    return HeldOut(nll, round(targets), text_nll, round(count))


@torch.inference_mode()
def measure(
    model: Transformer,
    batches: Iterable[Batch],
    byte_lengths: NDArray[np.int32],
    device: torch.device | str = "cpu",
    done: Callable[[int], None] | None = None,
) -> HeldOut:
    """Score batches of packed rows.

    Args:
        model: on `device`.
        batches: what to score.
        byte_lengths: int32 [V], bytes that each id stands for, 0 for special ones (`Tokenizer.byte_lengths`).
        device: where the model is.
        done: told how many batches are finished.
    """
    lengths = torch.from_numpy(byte_lengths.astype(np.int64)).to(device)
    sums_of = functools.partial(sums, byte_lengths=lengths)
    return total(accumulated(batches, sums_of, torch.device(device), lambda call: call(model), done))
