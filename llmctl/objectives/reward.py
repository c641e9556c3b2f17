"""The stage `reward`: a checkpoint that tells better answers from worse by a score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from llmctl.config.dpo import RewardConfig
from llmctl.config.errors import InputError, UsageError
from llmctl.config.preference import RewardLossConfig
from llmctl.model import scoring
from llmctl.model.likelihood import Tensors, hidden_states
from llmctl.model.transformer import Transformer
from llmctl.objectives import checkpoint, stepwise
from llmctl.objectives.pair_rows import PackedPairs, packed_sides
from llmctl.objectives.pairs import pairs_to_learn
from llmctl.objectives.preference import reward_losses
from llmctl.objectives.preferred import HeldOutPairs, Scored, fit_measured, fit_pairs, summed, tallied
from llmctl.objectives.start import fill_id, longest, open_model, open_tokenizer
from llmctl.pipeline.job import Job, Product
from llmctl.train import launch
from llmctl.train.objective import Fitted


@dataclass(frozen=True)
class RewardObjective:
    """Bradley and Terry's loss over a chosen and a rejected answer; the mean is over pairs.

    Attributes:
        rows: to learn from.
        config: whether margins count, and how scores are kept around zero.
    """

    rows: PackedPairs
    config: RewardLossConfig
    names: ClassVar[tuple[str, ...]] = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")

    def loss(self, model: Transformer, batch: Tensors) -> Tensor:
        """Sum over the pairs of the batch."""
        return tallied(model, self.scored(model, batch))

    def scored(self, model: Transformer, batch: Tensors) -> Scored:
        """Losses; the scores, their difference, and how often the chosen one's is larger."""
        present = batch.beside["present"]
        chosen, rejected = answer_scores(model, batch)
        margins = batch.beside["margin"][present] if self.config.margin else None
        losses = reward_losses(chosen, rejected, margins, centring=self.config.centring)
        values = (chosen, rejected, chosen - rejected, (chosen > rejected).double())
        return Scored(losses, summed(self.names, values))


def answer_scores(model: Transformer, batch: Tensors) -> tuple[Tensor, Tensor]:
    """Scores of the chosen and of the rejected answers, fp64 [N] each.

    A score is read at the token that ends the answer's last turn: the last one that a policy would have said. What a
    template puts behind it is not looked at.
    """
    present = batch.beside["present"]
    rows = present.nonzero()[:, 0]
    hidden = hidden_states(model, batch)[0]
    ends = batch.beside["ends"][present]  # [N,2]
    chosen, rejected = (scoring.scores(model, hidden[rows, ends[:, side]]).double() for side in range(2))
    return chosen, rejected


def run(job: Job[RewardConfig]) -> Product:
    """Train in this process, or with ranks where the configuration or a launcher asks for them.

    Raises:
        UsageError: there is nothing to learn from, or pairs and steps at once.
    """
    given = [role for role in ("preferences", "stepwise") if role in job.inputs]
    if len(given) != 1:
        what = "both --preferences and --stepwise" if given else "neither --preferences nor --stepwise"
        raise UsageError(f"reward has {what}", hint="give one: pairs of answers, or answers by labelled steps")
    return launch.start(job, "llmctl.objectives.reward:train")


def train(job: Job[RewardConfig]) -> Product:
    """What every rank runs.

    Raises:
        InputError: a row cannot be learned from, nothing is left to learn from, or no row has the margin asked for.
        UsageError: rows longer than the model's context were asked for.
    """
    if "stepwise" in job.inputs:
        return _train_on_steps(job)
    given, config = job.artifact(), job.config
    tokenizer = open_tokenizer(given)
    length = longest(given, config.max_tokens)
    found = pairs_to_learn(job, tokenizer, length)
    if config.loss.margin and not any(pair.margin for pair in found.pairs):
        raise InputError(f"{job.inputs['preferences'].ref} holds no margin", hint="leave out loss.margin, or add them")
    rows, held = packed_sides(found, config.row_tokens, fill_id(given, tokenizer))
    model = open_model(given, tokenizer)
    scoring.add_head(model)
    fitted, totals = fit_pairs(job, model, RewardObjective(rows, config.loss), held, found)
    facts = checkpoint.tuned_facts(given, length, found.heldout_fraction)
    return _published(job, fitted, model, {**facts, "head": scoring.HEAD}, totals)


def _train_on_steps(job: Job[RewardConfig]) -> Product:
    """A process reward model."""
    given, config = job.artifact(), job.config
    tokenizer = open_tokenizer(given)
    length = longest(given, config.max_tokens)
    kept, held, overlong = stepwise.answers_to_learn(job, tokenizer, length)
    filling = fill_id(given, tokenizer)
    rows, heldout_rows = (stepwise.rows_of(side, filling, config.row_tokens) for side in (kept, held))
    model = open_model(given, tokenizer)
    scoring.add_head(model)
    objective = stepwise.StepObjective(rows)
    measured = HeldOutPairs(heldout_rows, objective, unit="steps") if held else None
    fitted, totals = fit_measured(
        job, model, objective, measured, unit="answers", kept=len(kept), held=len(held), overlong=overlong
    )
    facts = checkpoint.tuned_facts(given, length, None)
    return _published(job, fitted, model, {**facts, "head": stepwise.HEAD}, totals)


def _published(
    job: Job[RewardConfig],
    fitted: Fitted,
    model: Transformer,
    semantic: dict[str, Any],
    totals: dict[str, int | float | str],
) -> Product:
    """The checkpoint, with its head in a file of its own."""
    if fitted.weights is not None:
        head: torch.Tensor = fitted.weights.pop(scoring.WEIGHT)
        scoring.save_head(job.out, head)
    directory = job.artifact().data
    return checkpoint.publish(
        job, fitted, model.config, tokenizer_directory=directory, semantic=semantic, totals=totals
    )
