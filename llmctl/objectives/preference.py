"""Losses of preferences: pure functions of log-probabilities, one value for each pair, of which the mean is taken once.

Where well-known implementations differ, docs/objectives.md says which one is followed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from llmctl.config.preference import (
    CpoConfig,
    HingeConfig,
    IpoConfig,
    KtoConfig,
    OrpoConfig,
    PairLossConfig,
    RobustConfig,
    RrhfConfig,
    SigmoidConfig,
    SigmoidNormConfig,
    SimPoConfig,
)


@dataclass(frozen=True)
class Answers:
    """One answer of each of N prompts; all [N].

    Attributes:
        logps: sum over the answer's tokens of log p(token | what comes before), in nats, of the policy.
        tokens: how many tokens these are, at least 1.
        reference: the same sum of the reference model, without gradient; None where the loss has no reference.
    """

    logps: Tensor
    tokens: Tensor
    reference: Tensor | None = None

    @property
    def ratios(self) -> Tensor:
        """Log p - log p of the reference."""
        if self.reference is None:
            raise ValueError("this loss compares with a reference, so its log-probabilities are needed")
        return self.logps - self.reference

    @property
    def mean_logps(self) -> Tensor:
        """Averaged over the answer's tokens."""
        return self.logps / self.tokens


def preference_losses(chosen: Answers, rejected: Answers, config: PairLossConfig) -> Tensor:
    """The loss of each pair: [N], in the dtype of the log-probabilities."""
    return _LOSSES[config.name](chosen, rejected, config)


def divergence_score(ratio: Tensor, divergence: str, alpha: float) -> Tensor:
    """f'(u) up to constants, for u = exp(ratio): what a log-ratio counts (Wang et al. 2023, arXiv:2309.16240).

    reverse_kl: log u. forward_kl: -1/u. js: log(u / (1 + u)) = log sigmoid(log u). alpha: u^(alpha - 1) / (alpha - 1).
    """
    if divergence == "forward_kl":
        return -torch.exp(-ratio)
    if divergence == "js":
        return logsigmoid(ratio)
    if divergence == "alpha":
        return torch.exp((alpha - 1) * ratio) / (alpha - 1)
    return ratio


def implied_rewards(answers: Answers, config: PairLossConfig | KtoConfig) -> Tensor:
    """What the policy's own figures say an answer is worth, without gradient: [N].

    b (log p - log p of the reference) where there is a reference (arXiv:2305.18290, equation 5), averaged where the
    loss averages; else b log p, averaged likewise, or that of RRHF, which has no b.
    """
    averaged = isinstance(config, SigmoidNormConfig | SimPoConfig | OrpoConfig | RrhfConfig)
    if isinstance(config, IpoConfig):
        averaged = config.average
    beta = 1.0 if isinstance(config, RrhfConfig) else config.beta
    worth = answers.logps if answers.reference is None else answers.ratios
    return (beta * (worth / answers.tokens if averaged else worth)).detach()


def _margins(chosen: Answers, rejected: Answers, config: Any) -> Tensor:
    """How much more the policy prefers the chosen answer than its reference does: [N]."""
    scores = (divergence_score(side.ratios, config.divergence, config.alpha) for side in (chosen, rejected))
    better, worse = scores
    return better - worse


def _sigmoid(chosen: Answers, rejected: Answers, config: SigmoidConfig) -> Tensor:
    """-(1 - e) log sigmoid(b d) - e log sigmoid(-b d) (arXiv:2305.18290, equation 7; e: Mitchell 2023)."""
    scaled, wrong = config.beta * _margins(chosen, rejected, config), config.label_smoothing
    return -(1 - wrong) * logsigmoid(scaled) - wrong * logsigmoid(-scaled)


def _robust(chosen: Answers, rejected: Answers, config: RobustConfig) -> Tensor:
    """(-(1 - e) log sigmoid(b d) + e log sigmoid(-b d)) / (1 - 2 e) (arXiv:2403.00409)."""
    scaled, wrong = config.beta * _margins(chosen, rejected, config), config.label_smoothing
    return (-(1 - wrong) * logsigmoid(scaled) + wrong * logsigmoid(-scaled)) / (1 - 2 * wrong)


def _hinge(chosen: Answers, rejected: Answers, config: HingeConfig) -> Tensor:
    """max(0, 1 - b d) (arXiv:2309.06657)."""
    return relu(1 - config.beta * _margins(chosen, rejected, config))


def _ipo(chosen: Answers, rejected: Answers, config: IpoConfig) -> Tensor:
    """(d - 1 / (2 b))^2 (arXiv:2310.12036, equation 17), of summed or of averaged log-ratios."""
    if config.average:
        chosen, rejected = _averaged(chosen), _averaged(rejected)
    return (_margins(chosen, rejected, config) - 1 / (2 * config.beta)).square()


def _sigmoid_norm(chosen: Answers, rejected: Answers, config: SigmoidNormConfig) -> Tensor:
    """-log sigmoid(b d) with d of averaged log-ratios (Lambert et al. 2024, arXiv:2411.15124)."""
    return -logsigmoid(config.beta * _margins(_averaged(chosen), _averaged(rejected), config))


def _averaged(side: Answers) -> Answers:
    """The same answers with log-probabilities for each token."""
    reference = None if side.reference is None else side.reference / side.tokens
    return Answers(side.mean_logps, torch.ones_like(side.tokens), reference)


def _simpo(chosen: Answers, rejected: Answers, config: SimPoConfig) -> Tensor:
    """-log sigmoid(b (m_chosen - m_rejected) - g), m averaged (arXiv:2405.14734, equation 6)."""
    return -logsigmoid(config.beta * (chosen.mean_logps - rejected.mean_logps) - config.gamma)


def _cpo(chosen: Answers, rejected: Answers, config: CpoConfig) -> Tensor:
    """-log sigmoid(b (log p_chosen - log p_rejected)) - a m_chosen (arXiv:2401.08417)."""
    preference = -logsigmoid(config.beta * (chosen.logps - rejected.logps))
    return preference - config.alpha * chosen.mean_logps


def _orpo(chosen: Answers, rejected: Answers, config: OrpoConfig) -> Tensor:
    """-m_chosen - b log sigmoid(log odds_chosen - log odds_rejected) (arXiv:2403.07691).

    odds(p) = p / (1 - p) of the averaged probability p = exp(m).
    """
    better, worse = chosen.mean_logps, rejected.mean_logps
    ratio = (better - worse) - (_log_complement(better) - _log_complement(worse))
    return -better - config.beta * logsigmoid(ratio)


def _log_complement(logp: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, by the half that loses no digits (Mächler 2012)."""
    near_one = logp > -math.log(2)
    close = torch.where(near_one, logp, torch.full_like(logp, -1.0))
    far = torch.where(near_one, torch.full_like(logp, -1.0), logp)
    return torch.where(near_one, torch.log(-torch.expm1(close)), torch.log1p(-torch.exp(far)))


def _rrhf(chosen: Answers, rejected: Answers, config: RrhfConfig) -> Tensor:
    """max(0, m_rejected - m_chosen) - a log p_chosen (arXiv:2304.05302)."""
    return relu(rejected.mean_logps - chosen.mean_logps) - config.alpha * chosen.logps


_LOSSES: Final[dict[str, Callable[[Answers, Answers, Any], Tensor]]] = {
    "sigmoid": _sigmoid,
    "robust": _robust,
    "hinge": _hinge,
    "ipo": _ipo,
    "sigmoid_norm": _sigmoid_norm,
    "simpo": _simpo,
    "cpo": _cpo,
    "orpo": _orpo,
    "rrhf": _rrhf,
}


def kto_losses(answers: Answers, desirable: Tensor, divergence: Tensor, config: KtoConfig) -> Tensor:
    """KTO: w (1 - sigmoid(b (r - z))) of good answers, w (1 - sigmoid(b (z - r))) of bad ones (arXiv:2402.01306).

    Args:
        answers: [N].
        desirable: bool [N].
        divergence: z, a scalar without gradient: max(0, the mean log-ratio of answers put to other prompts).
        config: weights.
    """
    reward = config.beta * (answers.ratios - divergence)
    good = config.desirable_weight * torch.sigmoid(-reward)
    bad = config.undesirable_weight * torch.sigmoid(reward)
    return torch.where(desirable, good, bad)


def reward_losses(chosen: Tensor, rejected: Tensor, margins: Tensor | None = None, *, centring: float = 0.0) -> Tensor:
    """-log sigmoid(s_chosen - s_rejected - margin) + c (s_chosen + s_rejected)^2 (Bradley and Terry 1952).

    The margin is that of Llama 2 (arXiv:2307.09288, equation 2), the second term Eisenstein et al.'s
    (arXiv:2312.09244).

    Args:
        chosen: scores [N].
        rejected: scores [N].
        margins: [N], or None for 0.
        centring: c.
    """
    difference = chosen - rejected if margins is None else chosen - rejected - margins
    return -logsigmoid(difference) + centring * (chosen + rejected).square()
