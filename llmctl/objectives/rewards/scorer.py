"""The reward that a reward model gives: its score of a prompt with its answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from llmctl.config.errors import InputError, UsageError
from llmctl.config.rewards import RewardConfig, ScorerReward
from llmctl.model import scoring
from llmctl.objectives.rewards.registry import Score
from llmctl.objectives.rewards.rules import Sample
from llmctl.store.artifact import Artifact


def check_scorer(rewards: Sequence[RewardConfig], given: Artifact | None) -> None:
    """Refuse a scorer without its model, a model without a scorer, and one that scores something else.

    Raises:
        InputError: it scores steps.
        UsageError: one is without the other.
    """
    wanted = any(isinstance(reward, ScorerReward) for reward in rewards)
    if wanted and given is None:
        raise UsageError("the reward scorer needs a reward model", hint="give --scorer REF")
    if given is None:
        return
    if not wanted:
        raise UsageError("no reward looks at --scorer", hint="leave it out, or add scorer to the rewards")
    if (head := given.manifest.semantic.get("head", scoring.HEAD)) != scoring.HEAD:
        raise InputError(
            f"{given.ref} scores {head}, not whole answers", hint="train one with llmctl reward --preferences"
        )


def scorer_of(directory: Path, device: torch.device, dtype: torch.dtype) -> Score:
    """Open the reward model in `directory`. Errors are those of `llmctl.model.scoring.load`."""
    model = scoring.load(directory, dtype=dtype).to(device).eval()

    def score(samples: Sequence[Sample]) -> list[float]:
        """Read at the last token of each answer, which ends its turn unless it was cut."""
        return scoring.last_scores(model, [sample.ids for sample in samples])

    return score
