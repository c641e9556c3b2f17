"""A reward model among the rewards of synthesis: it reads the answers of any teacher by its own tokenizer."""

from __future__ import annotations

import functools
from typing import Any

import torch

from llmctl.model.device import choose_device
from llmctl.objectives.rewards.registry import Score
from llmctl.objectives.rewards.scorer import check_scorer, scorer_of
from llmctl.objectives.start import open_tokenizer
from llmctl.objectives.synth.desk import ScoredIds
from llmctl.pipeline.job import Job
from llmctl.tokens.chat import render_answer


def reward_model(job: Job[Any]) -> tuple[Score | None, ScoredIds | None]:
    """The model among the inputs, and what it reads of a chat with its answer; None where there is none."""
    given = job.artifact("scorer") if "scorer" in job.inputs else None
    check_scorer(job.config.rewards, given)
    if given is None:
        return None, None
    score = scorer_of(given.data, choose_device(job.config.device), torch.float32)
    return score, functools.partial(render_answer, open_tokenizer(given))
