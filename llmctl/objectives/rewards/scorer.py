"""The reward that a reward model gives: its score of a prompt with its answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from llmctl.model import scoring
from llmctl.objectives.rewards.registry import Score
from llmctl.objectives.rewards.rules import Sample


def scorer_of(directory: Path, device: torch.device, dtype: torch.dtype) -> Score:
    """Open the reward model in `directory`. Errors are those of `llmctl.model.scoring.load`."""
    model = scoring.load(directory, dtype=dtype).to(device).eval()

    def score(samples: Sequence[Sample]) -> list[float]:
        """Read at the last token of each answer, which ends its turn unless it was cut."""
        return scoring.last_scores(model, [sample.ids for sample in samples])

    return score
