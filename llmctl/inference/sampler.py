"""From logits to tokens: one batch at a time, each row with its own settings and its own random numbers."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llmctl.inference.request import Request, TokenLogprob

FIRST_CANDIDATES = 128


def uniforms(seed: int | None) -> np.random.Generator:
    """A request's own stream of random numbers, one for each token (Philox, the same on every platform)."""
    return np.random.Generator(np.random.Philox(secrets.randbits(64) if seed is None else seed))


def sample(logits: Tensor, requests: Sequence[Request], streams: Sequence[np.random.Generator]) -> list[int]:
    """Choose the next token of each row.

    A row's choice depends on its own logits, settings and stream only. Temperature comes first, then top-k, then
    top-p. The token is the inverse of the cumulative distribution, in order of ids, at one uniform number.

    Args:
        logits: float32 [B,V].
        requests: B settings.
        streams: B sources of uniform numbers; a row at temperature 0 draws none.
    """
    best, greedy = logits.max(dim=-1)
    drawn = greedy
    if any(request.temperature > 0 for request in requests):
        numbers = [
            stream.random() if request.temperature > 0 else 0.0
            for request, stream in zip(requests, streams, strict=True)
        ]
        picked = _inverse(probabilities(logits, requests), numbers)
        cold = [request.temperature == 0 for request in requests]
        drawn = torch.where(torch.tensor(cold, device=logits.device), greedy, picked)
    if not bool(torch.isfinite(best).all()):
        raise FloatingPointError("the model's logits are not finite, so no token can be chosen")
    chosen: list[int] = drawn.tolist()
    return chosen


def probabilities(logits: Tensor, requests: Sequence[Request]) -> Tensor:
    """The distributions that are sampled from: [B,V], float32, not normalised after top-p."""
    device = logits.device
    heat = torch.tensor([request.temperature or 1.0 for request in requests], device=device)
    heat = heat.clamp(min=torch.finfo(torch.float32).tiny)  # a positive temperature must not round to 0
    # The likeliest goes to 0 first: at a tiny temperature the logits themselves would overflow, and it with them.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / heat[:, None]
    limits = [min(request.top_k or logits.shape[-1], logits.shape[-1]) for request in requests]
    if any(limit < logits.shape[-1] for limit in limits):
        scaled = _keep_top_k(scaled, limits)
    mass = scaled.softmax(dim=-1)
    if any(request.top_p < 1 for request in requests):
        mass = _keep_top_p(mass, torch.tensor([request.top_p for request in requests], device=device))
    return mass


def _keep_top_k(scaled: Tensor, limits: Sequence[int]) -> Tensor:
    """Put -inf below each row's k-th largest value. Ties with it stay, so that no order among equals matters."""
    vocab = scaled.shape[-1]
    widest = max(limit for limit in limits if limit < vocab)
    top = scaled.topk(widest, dim=-1).values
    last = torch.tensor([min(limit, widest) - 1 for limit in limits], device=scaled.device)
    unlimited = torch.tensor([limit == vocab for limit in limits], device=scaled.device)
    least = top.gather(1, last[:, None]).masked_fill(unlimited[:, None], -torch.inf)
    return scaled.masked_fill(scaled < least, -torch.inf)


def _keep_top_p(mass: Tensor, top_p: Tensor) -> Tensor:
    """Put 0 below each row's nucleus (Holtzman et al. 2019, arXiv:1904.09751); ties with its last token stay.

    Sorting a whole vocabulary is slow, and the nucleus is small as a rule: look at the likeliest few, and at more only
    where they do not reach top_p.
    """
    candidates = min(FIRST_CANDIDATES, mass.shape[-1])
    while True:
        top = mass.topk(candidates, dim=-1).values  # descending
        reached = top.double().cumsum(dim=-1)
        if candidates == mass.shape[-1] or bool(((reached[:, -1] >= top_p) | (top_p == 1)).all()):
            break
        candidates = min(candidates * 8, mass.shape[-1])
    needed = (reached - top) < top_p[:, None]  # those before do not suffice
    least = torch.where(needed, top, torch.inf).amin(dim=-1)
    return mass.masked_fill((mass < least[:, None]) & (top_p < 1)[:, None], 0.0)


def _inverse(mass: Tensor, numbers: Sequence[float]) -> Tensor:
    """The id in each row at which the cumulative sum passes `number` of the total: [B]."""
    cumulative = mass.double().cumsum(dim=-1)
    total = cumulative[:, -1:]
    target = total * torch.tensor(numbers, dtype=torch.float64, device=mass.device)[:, None]
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))  # rounding may reach the total
    # The first id whose cumulative sum exceeds the target, so none of probability 0.
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=mass.shape[-1] - 1)


def raw_logprobs(logits: Tensor, chosen: Sequence[int], requests: Sequence[Request]) -> list[TokenLogprob | None]:
    """Log-probabilities of the chosen tokens and of the likeliest, for the rows that asked for them.

    Args:
        logits: float32 [B,V], as the model gave them.
        chosen: B ids.
        requests: B; a row whose `logprobs` is None gets None.
    """
    found: list[TokenLogprob | None] = [None] * len(requests)
    rows = [row for row, request in enumerate(requests) if request.logprobs is not None]
    if not rows:
        return found
    counts = [requests[row].logprobs or 0 for row in rows]
    for row, entry in zip(rows, logprobs_of(logits[rows], [chosen[row] for row in rows], counts), strict=True):
        found[row] = entry
    return found


def logprobs_of(logits: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprob]:
    """Log-probability of one token of each row, and of the row's likeliest.

    Args:
        logits: float32 [B,V].
        tokens: B ids.
        counts: B numbers of likeliest tokens to report.
    """
    table = logits.log_softmax(dim=-1)
    own = table.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    top = table.topk(min(max(counts), table.shape[-1]), dim=-1)
    ids, values = top.indices.tolist(), top.values.tolist()
    return [
        TokenLogprob(token, own[row], tuple(zip(ids[row][:count], values[row][:count], strict=True)))
        for row, (token, count) in enumerate(zip(tokens, counts, strict=True))
    ]
