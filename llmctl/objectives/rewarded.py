"""What is learned from rewards, as the training loop takes it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.config.errors import GateError
from llmctl.config.grpo import GrpoConfig
from llmctl.model import scoring
from llmctl.model.likelihood import Tensors
from llmctl.model.transformer import Transformer
from llmctl.objectives.answer_rows import BESIDE, sampled_logps, target_states
from llmctl.objectives.explore import Asked, Explorer
from llmctl.objectives.policy import Tokens, divergences, policy_losses, value_losses
from llmctl.objectives.preferred import Scored, summed, tallied
from llmctl.tokens.batch import IGNORE, ROWS, Batch
from llmctl.tokens.order import rows_of_step
from llmctl.train.loader import Plan
from llmctl.train.strategy import Strategy


class PromptRows:
    """The prompts of a run, numbered as a rollout draws them; an `Ordered` source, of which the numbers alone are read.

    Args:
        count: of prompts.
        config: of the run.
    """

    def __init__(self, count: int, config: GrpoConfig) -> None:
        self.count, self._config = count, config

    def rows_of_step(self, seed: int, step: int, batch_rows: int) -> NDArray[np.int64]:
        """The prompts that the rollout of a step was first made of."""
        del batch_rows
        draw = step // self._config.steps_per_rollout * self._config.dynamic_sampling
        return rows_of_step(seed, draw, self._config.prompts_per_rollout, self.count)

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Nothing: what is learned from is made of answers."""
        raise NotImplementedError("an Explorer gives the batches")


class PolicyObjective:
    """The policy's loss over its own answers; an objective that `Explores`.

    Args:
        asked: what rollouts are made of.
        config: of the run.

    Attributes:
        largest_gap: between the engine's and the trainer's log p of a token, in the run so far.
    """

    names: ClassVar[tuple[str, ...]] = ("clipped", "ratio", "kl")

    def __init__(self, asked: Asked, config: GrpoConfig) -> None:
        self._asked, self._config = asked, config
        self.rows = PromptRows(len(asked.prompts), config)
        self.largest_gap = 0.0
        self._explorer: Explorer | None = None
        self._gaps: list[float] = []
        self._noting = threading.Lock()  # micro-batches may be computed side by side

    def explore(self, plan: Plan, strategy: Strategy) -> Explorer:
        """Answers of the model that is trained."""
        self._explorer = Explorer(self._asked, plan, strategy)
        return self._explorer

    def figures(self) -> dict[str, float]:
        """Those of the rollout where the step had a new one, with the largest gap of log-probabilities."""
        assert self._explorer is not None, "the loop explores first"
        found, gaps = dict(self._explorer.figures), self._gaps
        self._gaps = []
        if self._explorer.fresh and (gaps := self._explorer.of_all(gaps)):
            found["logprob_gap"] = max(gaps)
            self.largest_gap = max(self.largest_gap, *gaps)
        return found

    def settle(self) -> None:
        """Wait for what is drawn ahead."""
        assert self._explorer is not None, "the loop explores first"
        self._explorer.settle()

    def loss(self, model: Transformer, batch: Tensors) -> Tensor:
        """Sum over the tokens of the batch, each with its weight.

        Raises:
            GateError: the weights are those that sampled, and yet log-probabilities differ by more than `largest_gap`.
        """
        states = target_states(model, batch)
        logps = sampled_logps(model, states, batch, self._config.temperature).double()
        wanted = batch.labels != IGNORE
        old, advantages, weights, reference, correction, values, returns = (
            batch.beside[name][wanted] for name in BESIDE
        )
        if self._explorer is not None and self._explorer.fresh and old.numel():
            self._compare(logps.detach(), old)
        answers, count = batch.documents[wanted].long(), batch.beside[ROWS].shape[1]
        tokens = Tokens(logps, old, advantages, answers, count)
        policy = self._config.policy
        lost = policy_losses(tokens, policy)
        losses = lost.losses * correction
        away = torch.zeros_like(logps)
        if policy.kl.weight > 0:
            away = divergences(logps, reference, policy.kl.estimator)
            if policy.kl.into == "loss":
                losses = losses + policy.kl.weight * (away * lost.ratios if policy.kl.unbiased else away)
        figures: Sequence[Tensor] = (lost.clipped.double(), lost.ratios.detach(), away)
        noted = dict(summed(self.names, figures))
        if policy.kl.weight == 0:
            del noted["kl"]  # nothing looked at a reference
        if policy.baseline == "value":
            off = value_losses(scoring.scores(model, states).double(), values, returns, policy.value.clip)
            losses = losses + policy.value.weight * off
            noted |= summed(("value_loss",), (off,))
        return tallied(model, Scored(losses * weights, noted))

    def _compare(self, logps: Tensor, old: Tensor) -> None:
        """Note the largest difference, and refuse one that says that engine and trainer compute different things.

        Rounding grows with the figures, so of tokens with log p below -1 it is a share of log p.
        """
        away = (logps - old).abs()
        gap, share = (float(each.amax()) for each in (away, away / old.abs().clamp(min=1.0)))
        with self._noting:
            self._gaps.append(gap)
        if self._config.precision == "fp32" and share > self._config.largest_gap:
            raise GateError(
                f"the engine's log-probabilities differ from the trainer's by {gap:.2e}, "
                f"more than largest_gap ({self._config.largest_gap:g})",
                hint="what is sampled would not be what is learned; raise largest_gap where that is expected, "
                "and correct for it: policy.correction=token",
            )
