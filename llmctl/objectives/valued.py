"""Advantages of tokens by what a value head expected (PPO), and what a divergence takes off their rewards."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from llmctl.config.grpo import GrpoConfig
from llmctl.objectives.advantages import generalised_advantages, whitened
from llmctl.objectives.policy import divergences
from llmctl.objectives.rollouts import Answer


def token_penalties(answer: Answer, config: GrpoConfig) -> Tensor:
    """Of each token, the weighted divergence from the reference where it is part of the reward; fp64 [n]."""
    kl = config.policy.kl
    if kl.weight == 0 or kl.into != "reward":
        return torch.zeros(answer.size, dtype=torch.float64)
    assert answer.reference is not None, "scored before"
    own = torch.from_numpy(answer.logps if answer.old is None else answer.old)
    return kl.weight * divergences(own, torch.from_numpy(answer.reference), kl.estimator)


def valued(answers: Sequence[Answer], config: GrpoConfig) -> list[Answer]:
    """The answers with an advantage and a return of each token.

    A divergence is taken off the reward of the token that it is of, and all else is the reward of the last token.
    Answers without a reward take no part in the whitening.

    Args:
        answers: with `values`.
        config: of the run.
    """
    policy, longest = config.policy, max(one.size for one in answers)
    rewards, values = (torch.zeros(len(answers), longest, dtype=torch.float64) for _ in range(2))
    mask = torch.zeros(len(answers), longest, dtype=torch.bool)
    for row, one in enumerate(answers):
        if one.missing:
            continue
        assert one.values is not None, "measured before"
        penalties = token_penalties(one, config)
        count = one.size
        rewards[row, :count] = -penalties
        rewards[row, count - 1] += one.reward + float(penalties.sum())
        values[row, :count], mask[row, :count] = torch.from_numpy(one.values), True
    given = policy.value
    raw = generalised_advantages(rewards, values, mask, discount=given.discount, decay=given.decay)
    advantages = whitened(raw, mask) if policy.adv_norm == "batch" else raw
    returns = raw + values
    return [
        dataclasses.replace(
            one,
            advantage=float(advantages[row, : one.size].mean()),
            advantages=advantages[row, : one.size].numpy().copy(),
            returns=returns[row, : one.size].numpy().copy(),
        )
        for row, one in enumerate(answers)
    ]
