"""The reward that a reward model gives: its score of a prompt with its answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from llmctl.config.errors import UsageError
from llmctl.config.rewards import RewardConfig, ScorerReward
from llmctl.model import scoring
from llmctl.objectives.rewards.registry import Score, Value, finite
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
    scoring.require_whole(given)


def scorer_of(directory: Path, device: torch.device, dtype: torch.dtype) -> Score:
    """Open the reward model in `directory`. Errors are those of `llmctl.model.scoring.load`."""
    model = scoring.load(directory, dtype=dtype).to(device).eval()
    most = model.config.context
    beyond = f"with its prompt it is longer than the {most} tokens that the reward model reads"

    def score(samples: Sequence[Sample]) -> list[Value]:
        """Read at the last token of each answer, which ends its turn unless it was cut; none of what is too long."""
        rows = [sample.ids for sample in samples]
        scores = iter(scoring.last_scores(model, [row for row in rows if len(row) <= most]))
        return [finite(next(scores)) if len(row) <= most else (None, beyond) for row in rows]

    return score
