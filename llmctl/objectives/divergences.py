"""How far two distributions are from each other: pure functions of log-probabilities, one value for each position.

Where well-known implementations differ, docs/distill.md says which one is followed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from llmctl.config.distill import AnyDivergence, ForwardKlConfig, JsdConfig, ReverseKlConfig, TvdConfig, UldConfig


def divergence(teacher: Tensor, student: Tensor, config: AnyDivergence) -> Tensor:
    """The divergence of each of N positions, times the configuration's scale (temperature^2): [N].

    Args:
        teacher: log-probabilities [N,C], without gradient; -inf where there is no mass.
        student: log-probabilities [N,C] over the same classes, finite.
        config: which divergence.
    """
    match config:
        case ForwardKlConfig():
            found = kl(teacher, student)
        case ReverseKlConfig():
            found = kl(student, teacher)
        case JsdConfig(beta=beta):
            middle = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
            found = beta * kl(teacher, middle) + (1 - beta) * kl(student, middle)
        case TvdConfig():
            found = (teacher.exp() - student.exp()).abs().sum(dim=-1) / 2
        case UldConfig():
            found = (teacher.exp() - student.exp()).abs().sum(dim=-1)
    return found if config.scale == 1.0 else found * config.scale


def kl(first: Tensor, second: Tensor) -> Tensor:
    """Sum of p (log p - log q) over the classes of log p and log q, both [N,C]; [N]. What has no p counts as 0."""
    terms = first.exp() * (first - second)
    return torch.where(first.isneginf(), 0.0, terms).sum(dim=-1)


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of logits divided by the temperature; [N,V], in fp32 (fp64 where the logits are)."""
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return log_softmax(exact if temperature == 1.0 else exact / temperature, dim=-1)


def ranked(logprobs: Tensor, classes: int) -> Tensor:
    """Log-probabilities [N,V], likeliest first, and behind them `classes` - V of no mass: [N,classes].

    So distributions over different vocabularies come to lie beside each other by rank: the distance of the two is the
    least that any pairing of their tokens leaves (Boizard et al. 2024, arXiv:2402.12030).
    """
    order = logprobs.sort(dim=-1, descending=True).values
    return torch.nn.functional.pad(order, (0, classes - logprobs.shape[-1]), value=-math.inf)


def likeliest(logprobs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` likeliest classes of [N,V], likeliest first: ids int64 [N,count], and `lumped` [N,count + 1]."""
    ids = logprobs.topk(count, dim=-1).indices
    return ids, lumped(logprobs, ids)


def lumped(logprobs: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of the classes `ids` [N,K], and behind them that of all others together: [N,K + 1].

    The others' is summed from themselves: 1 minus the mass of the kept would have no digits where that is near 1.
    """
    others = logprobs.scatter(-1, ids, -math.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([logprobs.gather(-1, ids), others], dim=-1)


def renormalised(classes: Tensor) -> Tensor:
    """`lumped` log-probabilities as if the last class had no mass: [N,K + 1], the last of them -inf."""
    kept = log_softmax(classes[..., :-1], dim=-1)
    return torch.cat([kept, torch.full_like(classes[..., -1:], -math.inf)], dim=-1)
