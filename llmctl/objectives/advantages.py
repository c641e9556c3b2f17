"""What answers are worth, as pure functions of rewards: advantages, and what is taken off rewards beforehand.

Where well-known implementations differ, docs/rl.md says which one is followed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmctl.config.policy import AdvNorm, Baseline

EPSILON = 1e-4  # added to a standard deviation, as TRL does
DDOF = 1


def group_advantages(
    rewards: Tensor,
    *,
    baseline: Baseline = "group_mean",
    norm: AdvNorm = "group",
    ddof: int = DDOF,
    epsilon: float = EPSILON,
) -> Tensor:
    """How much better an answer is than the others to its prompt: fp64 [P,G].

    A missing reward (NaN) takes no part: its advantage is 0, and nothing else depends on it. An answer without another
    one to compare with has the advantage 0, as has every answer of a group whose rewards are all equal.

    Args:
        rewards: [P,G], G answers to each of P prompts; NaN where missing.
        baseline: `group_mean`, or `leave_one_out`: the mean of the others (RLOO, arXiv:2402.14740).
        norm: divide by the standard deviation of the `group` or of all rewards (`batch`), plus epsilon; or by nothing.
        ddof: n - ddof is what a variance is divided by.
        epsilon: see `norm`.
    """
    rewards = rewards.double()
    known = ~rewards.isnan()
    count = known.sum(dim=1, keepdim=True)
    filled = rewards.masked_fill(~known, 0.0)
    mean = filled.sum(dim=1, keepdim=True) / count.clamp(min=1)
    away = (filled - mean).masked_fill(~known, 0.0)
    if baseline == "leave_one_out":  # r - (sum - r) / (n - 1) = (r - mean) n / (n - 1)
        advantages = away * count / (count - 1).clamp(min=1)
    else:
        advantages = away
    if norm == "group":
        advantages = advantages / (deviations(rewards, ddof)[:, None] + epsilon)
    elif norm == "batch":
        advantages = advantages / (deviations(rewards.reshape(1, -1), ddof) + epsilon)
    alone = (count < 2) | (deviations(rewards, ddof)[:, None] == 0)
    return advantages.masked_fill(alone | ~known, 0.0)


def deviations(rewards: Tensor, ddof: int = DDOF) -> Tensor:
    """Standard deviation of each row [P], missing ones left out; exactly 0 where all are equal, or one is alone."""
    known = ~rewards.isnan()
    count = known.sum(dim=1)
    filled = rewards.masked_fill(~known, 0.0)
    mean = filled.sum(dim=1) / count.clamp(min=1)
    squares = (filled - mean[:, None]).masked_fill(~known, 0.0).square().sum(dim=1)
    high = rewards.masked_fill(~known, -torch.inf).amax(dim=1)
    low = rewards.masked_fill(~known, torch.inf).amin(dim=1)
    spread = (squares / (count - ddof).clamp(min=1)).sqrt()
    return spread.masked_fill((count < 2) | (high <= low), 0.0)


def overlong_penalty(tokens: Tensor, longest: int, cache: int) -> Tensor:
    """0 up to longest - cache tokens, -1 beyond longest, straight between (DAPO, arXiv:2503.14476, equation 13)."""
    if cache == 0:
        return torch.zeros_like(tokens, dtype=torch.float64)
    return ((longest - cache - tokens.double()) / cache).clamp(min=-1.0, max=0.0)


def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float = 1.0, decay: float = 0.95
) -> Tensor:
    """GAE (Schulman et al. 2016, arXiv:1506.02438): sum over k of (discount decay)^k delta_{t+k}; fp64 [B,T].

    delta_t = r_t + discount V_{t+1} - V_t. What the mask leaves out (prompts, a tool's output) is stepped over: the
    value behind a token is that of the next token that counts, and 0 behind the last one.

    Args:
        rewards: [B,T], of each token.
        values: [B,T], expected before each token.
        mask: bool [B,T].
        discount: of rewards a token later.
        decay: lambda.
    """
    rewards, values = rewards.double(), values.double()
    found = torch.zeros_like(rewards)
    carried = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(carried)
    for place in range(rewards.shape[1] - 1, -1, -1):
        here = mask[:, place]
        delta = rewards[:, place] + discount * following - values[:, place]
        carried = torch.where(here, delta + discount * decay * carried, carried)
        following = torch.where(here, values[:, place], following)
        found[:, place] = torch.where(here, carried, 0.0)
    return found


def whitened(values: Tensor, mask: Tensor, *, shift: bool = True, epsilon: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) of what the mask keeps, 0 elsewhere; without `shift` the mean is put back.

    The variance is divided by n - 1, as in TRL and verl.
    """
    kept = values[mask].double()
    if kept.numel() < 2:
        return torch.zeros_like(values, dtype=torch.float64)
    mean, variance = kept.mean(), kept.var(correction=1)
    white = (values.double() - mean) * (variance + epsilon).rsqrt()
    if not shift:
        white = white + mean
    return white.masked_fill(~mask, 0.0)
