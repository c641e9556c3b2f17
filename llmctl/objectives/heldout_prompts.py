"""The reward of answers to prompts that were not learned on: the likeliest answer to each, judged like any other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.config.grpo import GrpoConfig
from llmctl.model.likelihood import Tensors
from llmctl.model.transformer import Transformer
from llmctl.objectives.explore import Asked, sample_of
from llmctl.objectives.prompts import Prompt
from llmctl.objectives.rollouts import Answer, requests_of
from llmctl.tokens.batch import IGNORE, PADDING_DOCUMENT, Batch
from llmctl.train.strategy import Strategy


@dataclass(frozen=True)
class HeldOutReward:
    """What a policy gets for its likeliest answers.

    Attributes:
        reward: mean over the prompts whose reward is known; NaN where there is none.
        prompts: how many these are.
    """

    reward: float
    prompts: int

    @property
    def loss(self) -> float:
        """Less is better, so that the best state can be kept."""
        return -self.reward

    @property
    def figures(self) -> dict[str, int | float]:
        """By the names of metrics and totals."""
        known = {"heldout_reward": self.reward} if math.isfinite(self.reward) else {}
        return {**known, "heldout_prompts": self.prompts}

    @property
    def told(self) -> str:
        """In a line."""
        return f"held-out reward {self.reward:.4f} over {self.prompts} prompts"


class PromptNumbers:
    """Rows that say which prompt they stand for, with a target where they count, and nothing else."""

    def __init__(self, count: int) -> None:
        self.count = count

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """One row of one token for each."""
        shape = (len(indices), 1)
        blank = np.zeros(shape, dtype=np.int64)
        documents = np.full(shape, PADDING_DOCUMENT, dtype=np.int32)
        return Batch(blank, blank, documents, blank, np.ones(len(indices), dtype=np.int64), {"prompt": indices})


@dataclass(frozen=True)
class HeldOutPrompts:
    """Held-out prompts; a `HeldOutSource`.

    Attributes:
        asked: what is common to all answers of the run.
        prompts: that are held out.
        config: of the run.
    """

    asked: Asked
    prompts: Sequence[Prompt]
    config: GrpoConfig
    _rewards: dict[int, float] = field(default_factory=dict)

    @property
    def rows(self) -> PromptNumbers:
        """One for each prompt."""
        return PromptNumbers(len(self.prompts))

    def bytes_of(self, batch: Batch) -> int:
        """A reward is not one of text."""
        del batch
        return 0

    def look_ahead(self, batches: Iterable[Batch], strategy: Strategy) -> None:
        """Answer and judge all prompts of this rank's part of the sample."""
        numbers = [
            int(number)
            for batch in batches
            for number, label in zip(batch.beside["prompt"], batch.labels[:, 0], strict=True)
            if label != IGNORE
        ]
        if not numbers:
            return
        some = [(number, self.prompts[number]) for number in numbers]
        requests = requests_of(some, 1, self.config.seed, 0, max_tokens=self.config.max_new_tokens, temperature=0.0)
        said = self.asked.said(strategy.model, requests)
        samples = [sample_of(Answer.of(number, one), prompt) for (number, prompt), one in zip(some, said, strict=True)]
        judged = self.asked.judge(samples)
        self._rewards.update((number, one.value) for number, one in zip(numbers, judged, strict=True))

    def sums(self, model: Transformer, batch: Tensors) -> Tensor:
        """Rewards that are known, and how many."""
        del model
        numbers = batch.beside["prompt"][batch.labels[:, 0] != IGNORE]
        values = [self._rewards[int(number)] for number in numbers.tolist()]
        known = [value for value in values if not math.isnan(value)]
        return torch.tensor([math.fsum(known), len(known)], dtype=torch.float64, device=batch.tokens.device)

    def total(self, values: Sequence[float]) -> HeldOutReward:
        """The mean."""
        return HeldOutReward(values[0] / values[1] if values[1] else math.nan, round(values[1]))
