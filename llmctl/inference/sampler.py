"""From logits to tokens: one batch at a time, each row with its own settings and its own random numbers."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmctl.inference import kernel
from llmctl.inference.adjust import Turn, adjusted
from llmctl.inference.request import Request, TokenLogprob

FIRST_CANDIDATES = 128
NUMBERS_AT_ONCE = 64


class Numbers:
    """A request's own uniform random numbers, one for each token of its answer (Philox, the same on every platform).

    Args:
        seed: None for a fresh one.
    """

    def __init__(self, seed: int | None) -> None:
        self._stream = np.random.Generator(np.random.Philox(secrets.randbits(64) if seed is None else seed))
        self._drawn: list[float] = []

    def at(self, index: int) -> float:
        """The number of the token at `index`, however often and in whatever order it is asked for."""
        return self.between(index, index + 1)[0]

    def between(self, first: int, end: int) -> list[float]:
        """Those of the tokens from `first` on, before `end`."""
        while len(self._drawn) < end:
            self._drawn += self._stream.random(NUMBERS_AT_ONCE).tolist()
        return self._drawn[first:end]


@dataclass(frozen=True)
class Drawn:
    """The tokens of one step.

    Attributes:
        tokens: B ids; -1 where bans and grammar leave nothing to choose.
        logprobs: B, for the rows that asked for them.
    """

    tokens: list[int]
    logprobs: list[TokenLogprob | None]


def draw(logits: Tensor, turns: Sequence[Turn]) -> Drawn:
    """Choose the next token of each row.

    A row's choice depends on its own logits and turn only: penalties and bans (`adjusted`), temperature, top-k, top-p,
    min-p, typical, in this order. The token is the inverse of the cumulative distribution, in order of ids, at one
    uniform number; at temperature 0 the likeliest.

    Args:
        logits: float32 [B,V], as the model gave them.
        turns: B.
    """
    bent = adjusted(logits, turns)
    apart = logits.device.type != "cpu"
    tables = [row for row, turn in enumerate(turns) if apart or needs_table(turn.request)]
    if not tables:
        return _by_kernel(bent, logits, turns)
    if len(tables) == len(turns):
        return _by_table(bent, logits, turns)
    tokens: list[int] = [-1] * len(turns)
    logprobs: list[TokenLogprob | None] = [None] * len(turns)
    others = sorted(set(range(len(turns))) - set(tables))
    for rows, way in ((tables, _by_table), (others, _by_kernel)):
        some = way(bent[rows], logits[rows], [turns[row] for row in rows])
        for row, token, logprob in zip(rows, some.tokens, some.logprobs, strict=True):
            tokens[row], logprobs[row] = token, logprob
    return Drawn(tokens, logprobs)


def needs_table(request: Request) -> bool:
    """Whether the whole distribution must be laid out: it is asked for, or cut by a rule that the kernel has not."""
    return request.temperature > 0 and (
        request.typical_p < 1 or (request.logprobs_of == "sampled" and bool(request.logprobs))
    )


def _by_kernel(bent: Tensor, logits: Tensor, turns: Sequence[Turn]) -> Drawn:
    """`draw` in one pass over each row; `bent` is what `adjusted` made of the logits."""
    manners = [manner_of(turn.request, turn.number) for turn in turns]
    tokens, told = kernel.choose(bent, logits, manners)
    logprobs = [
        None if manner[-1] == 0 or token < 0 else TokenLogprob(token, logprob)
        for token, logprob, manner in zip(tokens, told, manners, strict=True)
    ]
    listed = [row for row, turn in enumerate(turns) if turn.request.logprobs and tokens[row] >= 0]
    if listed:
        requests = [turns[row].request for row in listed]
        for row, entry in zip(
            listed, _logprobs(logits[listed], None, [tokens[row] for row in listed], requests), strict=True
        ):
            logprobs[row] = entry
    return Drawn(tokens, logprobs)


def manner_of(request: Request, number: float) -> kernel.Manner:
    """How the kernel is to choose at a uniform number."""
    wanted = 0 if request.logprobs is None else 1 if request.logprobs_of == "raw" else 2
    return number, request.temperature, request.top_k, request.top_p, request.min_p, wanted


def _by_table(bent: Tensor, logits: Tensor, turns: Sequence[Turn]) -> Drawn:
    """`draw` by the whole distributions."""
    best, greedy = bent.max(dim=-1)
    if not bool(torch.isfinite(best if bent is logits else logits.amax(dim=-1)).all()):
        raise FloatingPointError(kernel.NOT_FINITE)
    mass, picked = None, greedy
    if any(turn.request.temperature > 0 for turn in turns):
        mass = probabilities(bent, [turn.request for turn in turns])
        cold = torch.tensor([turn.request.temperature == 0 for turn in turns], device=logits.device)
        picked = torch.where(cold, greedy, _inverse(mass, [turn.number for turn in turns]))
    tokens: list[int] = picked.tolist()
    if bent is not logits:
        possible = (best > -torch.inf).tolist()
        tokens = [token if fine else -1 for token, fine in zip(tokens, possible, strict=True)]
    return Drawn(tokens, _logprobs(logits, mass, tokens, [turn.request for turn in turns]))


def _logprobs(
    logits: Tensor, mass: Tensor | None, tokens: Sequence[int], requests: Sequence[Request]
) -> list[TokenLogprob | None]:
    """What the rows that ask for log-probabilities get."""
    found: list[TokenLogprob | None] = [None] * len(requests)
    rows = [row for row, request in enumerate(requests) if request.logprobs is not None and tokens[row] >= 0]
    warm = [row for row in rows if requests[row].logprobs_of == "sampled" and requests[row].temperature > 0]
    raw = [row for row in rows if requests[row].logprobs_of == "raw"]
    for row in set(rows) - {*warm, *raw}:  # at temperature 0 all of the distribution is on one token
        top = ((tokens[row], 0.0),) if requests[row].logprobs else ()
        found[row] = TokenLogprob(tokens[row], 0.0, top)
    for some, table in ((raw, logits), (warm, mass)):
        if some and table is not None:
            scores = table[some] if table is logits else table[some].log()
            counts = [requests[row].logprobs or 0 for row in some]
            for row, entry in zip(some, logprobs_of(scores, [tokens[row] for row in some], counts), strict=True):
                found[row] = entry
    return found


def probabilities(logits: Tensor, requests: Sequence[Request]) -> Tensor:
    """The distributions that are sampled from: [B,V], float32, not normalised after truncation."""
    device, vocab = logits.device, logits.shape[-1]

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None]  # [B,1]

    heat = column([request.temperature or 1.0 for request in requests])
    heat = heat.clamp(min=torch.finfo(torch.float32).tiny)  # a positive temperature must not round to 0
    # The likeliest goes to 0 first: at a tiny temperature the logits themselves would overflow, and it with them.
    best = logits.amax(dim=-1, keepdim=True)
    scaled = (logits - best.nan_to_num(neginf=0.0)) / heat
    limits = [min(request.top_k or vocab, vocab) for request in requests]
    if any(limit < vocab for limit in limits):
        scaled = _keep_top_k(scaled, limits)
    mass = scaled.softmax(dim=-1)
    if any(request.top_p < 1 for request in requests):
        mass = _keep_top_p(mass, torch.tensor([request.top_p for request in requests], device=device))
    if any(request.min_p > 0 for request in requests):
        mass = mass.masked_fill(mass < column([request.min_p for request in requests]) * mass.amax(-1, True), 0.0)
    for row, request in enumerate(requests):
        if request.typical_p < 1:
            mass[row] = _keep_typical(mass[row], request.typical_p)
    return mass


def _keep_typical(mass: Tensor, typical_p: float) -> Tensor:
    """Put 0 outside the fewest ids nearest to the expected surprise that reach `typical_p`; ties with the last stay.

    Surprise is -log p and its expectation the entropy (Meister et al. 2023, arXiv:2202.00666, section 4).

    Args:
        mass: [V], of any sum.
        typical_p: of the sum.
    """
    exact = mass.double() / mass.double().sum()
    surprise = -exact.log()
    entropy = torch.special.entr(exact).sum()
    away = torch.where(exact > 0, (surprise - entropy).abs(), torch.inf)
    order = away.argsort()
    reached = exact[order].cumsum(0)
    count = int((reached < typical_p).sum()) + 1
    last = away[order[min(count, len(order)) - 1]]
    return mass.masked_fill(away > last, 0.0)


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


def logprobs_of(logits: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprob]:
    """Log-probability of one token of each row, and of the row's likeliest.

    Args:
        logits: float32 [B,V], of any offset; -inf for an id that cannot come, which is never among the likeliest.
        tokens: B ids.
        counts: B numbers of likeliest tokens to report.
    """
    table = logits.log_softmax(dim=-1)
    own = table.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    top = table.topk(min(max(counts), table.shape[-1]), dim=-1)
    ids, values = top.indices.tolist(), top.values.tolist()
    return [
        TokenLogprob(token, own[row], _pairs(ids[row][:count], values[row][:count]))
        for row, (token, count) in enumerate(zip(tokens, counts, strict=True))
    ]


def _pairs(ids: Sequence[int], values: Sequence[float]) -> tuple[tuple[int, float], ...]:
    return tuple((index, value) for index, value in zip(ids, values, strict=True) if value > -math.inf)
