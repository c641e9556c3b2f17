"""Losses of a policy: pure functions of log-probabilities of sampled tokens, one value for each token.

Tokens of all answers lie behind one another, [N]; `answers` says which answer each is of. What the values are divided
by is decided once for a whole step (`token_weights`), so it does not depend on how the step is dealt to micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmctl.config.policy import ClipConfig, Correction, KlEstimator, LossAgg, PolicyConfig, Ratio

LARGEST_LOG_RATIO = 20.0  # exp of more is no figure to learn from; verl and OpenRLHF cut there too


@dataclass(frozen=True)
class Tokens:
    """Sampled tokens of a few answers; all [N].

    Attributes:
        logps: log p of the policy that learns.
        old: of the policy that sampled, without gradient.
        advantages: of each token's answer, or of the token.
        answers: which answer a token is of, 0 to `count` - 1.
        count: number of answers.
    """

    logps: Tensor
    old: Tensor
    advantages: Tensor
    answers: Tensor
    count: int


@dataclass(frozen=True)
class Lost:
    """Values of tokens, [N] each.

    Attributes:
        losses: with a gradient.
        ratios: p / p of the policy that sampled, by the level that the loss looks at; with a gradient.
        clipped: whether the bound decided.
    """

    losses: Tensor
    ratios: Tensor
    clipped: Tensor


def log_ratios(tokens: Tokens, level: Ratio) -> Tensor:
    """Log of p / p of the policy that sampled, for each token: its own, or the mean or the sum over its answer; [N].

    The mean is GSPO's (arXiv:2507.18071, equation 7), the sum that of whole answers (RLOO).
    """
    own = tokens.logps - tokens.old
    if level == "token":
        return own.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    sums = own.new_zeros(tokens.count).index_add(0, tokens.answers, own)
    if level == "sequence":
        lengths = torch.bincount(tokens.answers, minlength=tokens.count).clamp(min=1)
        sums = sums / lengths
    return sums.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)[tokens.answers]


def policy_losses(tokens: Tokens, config: PolicyConfig) -> Lost:
    """The loss of each token, divergence from a reference left out."""
    ratios = log_ratios(tokens, config.ratio).exp()
    if config.surrogate == "cispo":
        return _cispo(tokens, ratios, config.clip)
    return _clipped(tokens, ratios, config.clip)


def _clipped(tokens: Tokens, ratios: Tensor, clip: ClipConfig) -> Lost:
    """-min(r A, clip(r) A) (PPO, arXiv:1707.06347); where A < 0 at most -dual A (arXiv:1912.09729)."""
    advantages = tokens.advantages
    free = -ratios * advantages
    bound = -ratios.clamp(1 - clip.low, 1 + clip.high) * advantages
    losses = torch.maximum(free, bound)
    clipped = bound > free
    if clip.dual is not None:
        most = -clip.dual * advantages
        beyond = (advantages < 0) & (losses > most)
        losses, clipped = torch.where(beyond, most, losses), clipped | beyond
    return Lost(losses, ratios, clipped)


def _cispo(tokens: Tokens, ratios: Tensor, clip: ClipConfig) -> Lost:
    """-min(r, 1 + high) A log p, without a gradient through the ratio (MiniMax-M1, arXiv:2506.13585, equation 4)."""
    weights = ratios.detach().clamp(max=1 + clip.high)
    losses = -weights * tokens.advantages * tokens.logps
    return Lost(losses, ratios, ratios > 1 + clip.high)


def divergences(logps: Tensor, reference: Tensor, estimator: KlEstimator) -> Tensor:
    """Schulman's estimators of KL(policy || reference) at sampled tokens, with x = log p - log p_ref; [N].

    k1: x. k2: x^2 / 2. k3: exp(-x) - 1 + x, which is never negative (joschu.net/blog/kl-approx.html).
    """
    away = logps - reference
    if estimator == "k1":
        return away
    if estimator == "k2":
        return away.square() / 2
    away = away.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return torch.expm1(-away) + away


def corrections(old: Tensor, sampler: Tensor, answers: Tensor, count: int, kind: Correction, most: float) -> Tensor:
    """Weights for tokens whose sampler computed other probabilities than the trainer does, without gradient; [N].

    Args:
        old: log p of the trainer, of the weights that sampled, [N].
        sampler: log p that they were sampled with, [N].
        answers: which answer a token is of.
        count: number of answers.
        kind: `token`: min(p / p_sampler, most) (arXiv:2510.18927); `sequence`: p / p_sampler of the whole answer where
            that is at most `most`, 0 elsewhere, as TRL does by default; `none`: 1.
        most: see `kind`.
    """
    if kind == "none":
        return torch.ones_like(old)
    away = (old - sampler).detach()
    if kind == "token":
        return away.clamp(max=LARGEST_LOG_RATIO).exp().clamp(max=most)
    sums = away.new_zeros(count).index_add(0, answers, away)
    ratios = sums.clamp(max=LARGEST_LOG_RATIO).exp()
    return ratios.masked_fill(ratios > most, 0.0)[answers]


def token_weights(lengths: Tensor, counted: Tensor, kind: LossAgg, *, longest: int, rollout_tokens: float) -> Tensor:
    """What the loss of each token of an answer is multiplied by, so that the sum over a step is its loss; fp64 [A].

    Args:
        lengths: tokens of each answer of the step, [A].
        counted: bool [A]; the tokens of others weigh 0, and are in no number of tokens, but they are among the answers.
        kind: of the aggregation: `grpo` 1 / (A L_i); `dr_grpo` 1 / (A longest); `dapo` 1 / rollout_tokens;
            `bnpo` 1 / tokens of the step; `seq_sum` 1 / A.
        longest: most tokens that an answer may have.
        rollout_tokens: tokens of the whole rollout that count, divided by the number of steps of a pass over it.
    """
    answers = max(1, lengths.numel())
    each = torch.ones_like(lengths, dtype=torch.float64)
    if kind == "grpo":
        weights = each / (answers * lengths.clamp(min=1))
    elif kind == "dr_grpo":
        weights = each / (answers * longest)
    elif kind == "dapo":
        weights = each / max(1.0, rollout_tokens)
    elif kind == "bnpo":
        weights = each / max(1.0, float(lengths[counted].sum()))
    else:
        weights = each / answers
    return weights.masked_fill(~counted, 0.0)


def value_losses(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """max((v - R)^2, (v cut to within `clip` of the old one - R)^2) / 2 of each token (PPO2's value loss); [N]."""
    near = old + (values - old).clamp(-clip, clip)
    return torch.maximum((values - returns).square(), (near - returns).square()) / 2
