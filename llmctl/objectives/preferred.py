"""What is learned from preferences, as the training loop takes it: objectives over rows of pairs."""

from __future__ import annotations

import functools
import json
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import torch
from torch import Tensor

from llmctl.config.preference import KtoConfig, PairLossConfig, needs_reference
from llmctl.model.likelihood import Tensors
from llmctl.model.transformer import Transformer
from llmctl.objectives.checkpoint import fit_tuned
from llmctl.objectives.pair_rows import PackedPairs, answer_logps, answers_of
from llmctl.objectives.pairs import Pairs
from llmctl.objectives.preference import Answers, implied_rewards, kto_losses, preference_losses
from llmctl.pipeline.job import Job
from llmctl.tokens.batch import IGNORE, Batch
from llmctl.train.loader import RowSource
from llmctl.train.objective import Fitted, LooksAhead
from llmctl.train.strategy import Strategy

Figures = Mapping[str, tuple[Tensor, int]]
"""By name: a sum and what to divide it by."""


COMPARED: Final = {
    "heldout_loss": "loss",
    "heldout_rewards/margins": "margin",
    "heldout_logps/margins": "log-probability of a token ahead by",
    "heldout_logps/accuracies": "better answer likelier in",
}
"""Held-out figures that are kept of the start too, and what they are called."""

_NOTING = threading.Lock()  # micro-batches may be computed side by side


@dataclass(frozen=True)
class Scored:
    """What a model does on the pairs of a batch.

    Attributes:
        losses: [N], with a gradient.
        figures: to be looked at.
    """

    losses: Tensor
    figures: Figures


class Scores(Protocol):
    """An objective over pairs, or over steps."""

    names: ClassVar[tuple[str, ...]]

    @property
    def rows(self) -> RowSource:
        """What is learned from."""
        ...

    def loss(self, model: Transformer, batch: Tensors) -> Tensor:
        """Sum over the pairs of the batch."""
        ...

    def scored(self, model: Transformer, batch: Tensors) -> Scored:
        """Loss of each pair, and the figures `names`."""
        ...


@dataclass(frozen=True)
class PairObjective:
    """A loss over a chosen and a rejected answer; the mean is over pairs.

    Attributes:
        rows: to learn from.
        config: which loss.
    """

    rows: PackedPairs
    config: PairLossConfig
    names: ClassVar[tuple[str, ...]] = (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
        "logps/margins",
        "logps/accuracies",
    )

    def loss(self, model: Transformer, batch: Tensors) -> Tensor:
        """Sum over the pairs of the batch."""
        return tallied(model, self.scored(model, batch))

    def scored(self, model: Transformer, batch: Tensors) -> Scored:
        """Losses; rewards as `implied_rewards`, their difference, and how often the chosen one's is larger.

        The last two are of the policy alone, without a reference: how much more log-probability a token of the chosen
        answer has than one of the rejected, and how often it has more. They say where a policy begins.
        """
        chosen, rejected = answers_of(model, batch, referenced=needs_reference(self.config))
        losses = preference_losses(chosen, rejected, self.config)
        better, worse = implied_rewards(chosen, self.config), implied_rewards(rejected, self.config)
        ahead = chosen.mean_logps - rejected.mean_logps
        values = (
            *(better, worse, better - worse, (better > worse).double()),
            *(chosen.logps, rejected.logps, ahead, (ahead > 0).double()),
        )
        return Scored(losses, summed(self.names, values))


class KtoObjective:
    """KTO over answers that are judged by themselves; the mean is over answers.

    Its z, how far the policy has moved from its reference on answers to other prompts, is taken over all answers of
    an optimizer step and of all ranks before the gradient, so that loss and gradient do not depend on how the step
    is dealt to micro-batches (elsewhere z is that of each micro-batch). The z of the held-out figures is taken in the
    same way over the held-out sample.

    Args:
        rows: to learn from, with mismatched answers on their second side.
        config: weights.
    """

    names: ClassVar[tuple[str, ...]] = (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
        "kl",
    )

    def __init__(self, rows: PackedPairs, config: KtoConfig) -> None:
        self.rows, self.config = rows, config
        self.divergence = 0.0

    @torch.no_grad()
    def look_ahead(self, batches: Iterable[Batch], strategy: Strategy) -> None:
        """Z = max(0, mean of log p - log p of the reference over the step's mismatched answers)."""
        total, answers = 0.0, 0
        for batch in batches:
            tensors = Tensors.of(batch, strategy.device)
            total += float(strategy.forward(functools.partial(self._moved, batch=tensors)))
            answers += batch.targets
        summed, count = strategy.sum([total, answers])
        self.divergence = max(0.0, summed / max(1.0, count))

    def _moved(self, model: Transformer, batch: Tensors) -> Tensor:
        ((logps, _),) = answer_logps(model, batch, sides=(1,))
        present = batch.beside["present"]
        moved = (logps - batch.beside["reference"][present][:, 1]).sum()
        return torch.zeros_like(moved) if _is_blank(batch) else moved

    def loss(self, model: Transformer, batch: Tensors) -> Tensor:
        """Sum over the answers of the batch, with the z of the step."""
        return tallied(model, self.scored(model, batch))

    def scored(self, model: Transformer, batch: Tensors) -> Scored:
        """Losses; rewards of good and of bad answers, and how often a reward is on the right side of z."""
        ((logps, tokens),) = answer_logps(model, batch, sides=(0,))
        present = batch.beside["present"]
        answers = Answers(logps, tokens, batch.beside["reference"][present][:, 0])
        good = batch.beside["desirable"][present]
        divergence = torch.tensor(self.divergence, dtype=torch.float64, device=logps.device)
        losses = kto_losses(answers, good, divergence, self.config)
        rewards, logps = implied_rewards(answers, self.config), logps.detach()
        right = (rewards > self.config.beta * divergence) == good
        values = (
            rewards[good],
            rewards[~good],
            right.double(),
            logps[good],
            logps[~good],
            divergence.expand(len(good)),
        )
        return Scored(losses, summed(self.names, values))


def _is_blank(batch: Tensors) -> bool:
    """Whether these are the rows of a surplus pass, which count for nothing."""
    return not bool((batch.labels != IGNORE).any())


def summed(names: Sequence[str], values: Sequence[Tensor]) -> Figures:
    """Figures of a batch by name, from their values, each [n]."""
    return {name: (value.detach().sum(), value.numel()) for name, value in zip(names, values, strict=True)}


def tallied(model: Transformer, scored: Scored) -> Tensor:
    """The sum of the losses; the figures go into the tally of a model that is trained."""
    if model.training:
        with _NOTING:
            for name, (value, count) in scored.figures.items():
                noted, counted = model.tally.get(name, (value.new_empty(0, dtype=torch.float64), 0))
                model.tally[name] = (torch.cat([noted, value.double().reshape(1)]), counted + count)
    return scored.losses.sum()


@dataclass(frozen=True)
class HeldOutPreferences:
    """What a model does on held-out pairs.

    Attributes:
        pairs: how many.
        loss: their mean loss; NaN where there is none.
        means: the objective's figures.
        unit: what they are.
    """

    pairs: int
    loss: float
    means: Mapping[str, float]
    unit: str = "pairs"

    @property
    def figures(self) -> dict[str, int | float]:
        """By the names of metrics and totals."""
        defined = {"heldout_loss": self.loss, **{f"heldout_{name}": mean for name, mean in self.means.items()}}
        return {
            **{name: value for name, value in defined.items() if math.isfinite(value)},
            f"heldout_{self.unit}": self.pairs,
        }

    @property
    def told(self) -> str:
        """Loss, and how often the better answer is told from the worse, by rewards and by likelihood."""
        likelier = self.means.get("logps/accuracies")
        told = f"held-out loss {self.loss:.4f}, {self.means['rewards/accuracies']:.1%} told right"
        return told if likelier is None else f"{told}, the better answer likelier in {likelier:.1%}"


@dataclass(frozen=True)
class HeldOutPairs:
    """Held-out pairs; a `HeldOutSource`.

    Attributes:
        rows: of which a fixed sample is scored.
        objective: what scores.
        unit: what the loss is a mean over.
    """

    rows: RowSource
    objective: Scores
    unit: str = "pairs"

    def bytes_of(self, batch: Batch) -> int:
        """The loss is one of pairs, not of text."""
        del batch
        return 0

    def look_ahead(self, batches: Iterable[Batch], strategy: Strategy) -> None:
        """What the objective looks at before a step, here over the held-out sample."""
        if isinstance(self.objective, LooksAhead):
            self.objective.look_ahead(batches, strategy)

    def sums(self, model: Transformer, batch: Tensors) -> Tensor:
        """Loss and pairs, then each figure and what to divide it by; nothing of rows without targets."""
        scored = self.objective.scored(model, batch)
        values = [scored.losses.detach().sum(), torch.tensor(scored.losses.numel())]
        for name in self.objective.names:
            value, count = scored.figures[name]
            values += [value, torch.tensor(count)]
        flat = torch.stack([value.to(dtype=torch.float64, device=batch.tokens.device) for value in values])
        return torch.zeros_like(flat) if _is_blank(batch) else flat

    def total(self, values: Sequence[float]) -> HeldOutPreferences:
        """Means."""
        means = [values[at] / values[at + 1] if values[at + 1] else math.nan for at in range(0, len(values), 2)]
        figures = dict(zip(self.objective.names, means[1:], strict=True))
        return HeldOutPreferences(round(values[1]), means[0], figures, self.unit)


def fit_pairs(
    job: Job[Any], model: Transformer, objective: Scores, held: PackedPairs, found: Pairs
) -> tuple[Fitted, dict[str, int | float | str]]:
    """`fit_measured` on pairs."""
    measured = HeldOutPairs(held, objective) if held.count else None
    kept, overlong = len(found.pairs) - len(held.pairs), len(found.overlong)
    return fit_measured(
        job, model, objective, measured, unit="pairs", kept=kept, held=len(held.pairs), overlong=overlong
    )


def fit_measured(
    job: Job[Any],
    model: Transformer,
    objective: Scores,
    heldout: HeldOutPairs | None,
    *,
    unit: str,
    kept: int,
    held: int,
    overlong: int = 0,
) -> tuple[Fitted, dict[str, int | float | str]]:
    """`checkpoint.fit_tuned`, measured before and after; what was gained is said, and the start is in the totals."""
    counts = {"kept": kept, "held": held, "overlong": overlong}
    fitted, totals = fit_tuned(job, model, objective, heldout, unit=unit, measured_before=True, **counts)
    if fitted.weights is not None and heldout is not None:
        before = first_measured(job.metrics_file)
        totals |= {f"before_{name}": before[name] for name in COMPARED if name in before}
        job.progress.note(gained(before, fitted.totals, heldout.unit))
    return fitted, totals


def first_measured(metrics_file: Path) -> dict[str, float]:
    """The held-out figures before the first step."""
    with open(metrics_file, encoding="utf-8") as lines:
        row: dict[str, float] = json.loads(next(lines))
    return row


def gained(before: Mapping[str, Any], after: Mapping[str, Any], unit: str) -> str:
    """What training changed on held-out pairs or steps, in a line."""
    shown = {name: value for name, value in COMPARED.items() if name in before and name in after}
    changes = (f"{told} {before[name]:.4g} to {after[name]:.4g}" for name, told in shown.items())
    return f"{after[f'heldout_{unit}']} held-out {unit}, before and after: {', '.join(changes)}"
