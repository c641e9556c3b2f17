"""What a request does to the logits before anything is chosen: penalties, biases, and ids that may not come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmctl.inference.request import Request

Entries = list[tuple[int, int, float]]
"""Row, id and a number."""


@dataclass
class Turn:
    """One row of a step: who chooses, and what its choice depends on beside the logits.

    Attributes:
        request: the settings.
        number: uniform in [0, 1); unused at temperature 0.
        generated: how often each id was generated so far.
        early: ids that may not come yet, if anything else may.
        allowed: bool [V], what a grammar allows; None for everything.
    """

    request: Request
    number: float = 0.0
    generated: Counter[int] = field(default_factory=Counter)
    early: Collection[int] = ()
    allowed: Tensor | None = None

    @property
    def bends(self) -> bool:
        """Whether the logits are changed before the choice."""
        return self.request.bends or bool(self.early) or self.allowed is not None


def adjusted(logits: Tensor, turns: Sequence[Turn]) -> Tensor:
    """Logits after the repetition penalty, then frequency and presence penalties and biases, then bans.

    A repetition penalty r divides positive logits and multiplies negative ones, of ids in prompt or answer (Keskar et
    al. 2019, CTRL, arXiv:1909.05858, section 4.1). From the logit of an id generated c times, frequency x c + presence
    are taken where c > 0 (OpenAI's definition).

    Args:
        logits: float32 [B,V]; not changed.
        turns: B.

    Returns:
        [B,V]; `logits` itself where nothing changes. A row may be -inf throughout, where its bans leave nothing.
    """
    if not any(turn.bends for turn in turns):
        return logits
    repeated = [entry for row, turn in enumerate(turns) for entry in _repeated(row, turn)]
    added = [entry for row, turn in enumerate(turns) for entry in _added(row, turn)]
    banned = [(row, index, 0.0) for row, turn in enumerate(turns) for index in turn.request.banned_ids]
    if repeated:
        rows, ids, penalties = _columns(repeated, logits)
        own = logits[rows, ids]
        logits = logits.index_put((rows, ids), torch.where(own > 0, own / penalties, own * penalties))
    if added:
        rows, ids, values = _columns(added, logits)
        logits = logits.index_put((rows, ids), values, accumulate=True)
    if banned:
        rows, ids, _ = _columns(banned, logits)
        logits = logits.index_put((rows, ids), logits.new_tensor(-torch.inf))
    return _within(logits, turns)


def _repeated(row: int, turn: Turn) -> Entries:
    penalty = turn.request.repetition_penalty
    if penalty == 1:
        return []
    return [(row, index, penalty) for index in {*turn.request.prompt_ids, *turn.generated}]


def _added(row: int, turn: Turn) -> Entries:
    request = turn.request
    entries = [(row, index, bias) for index, bias in request.logit_bias.items()]
    if request.frequency_penalty or request.presence_penalty:
        for index, count in turn.generated.items():
            entries.append((row, index, -request.frequency_penalty * count - request.presence_penalty))
    return entries


def _within(logits: Tensor, turns: Sequence[Turn]) -> Tensor:
    """Put -inf on what is outside the allowed ids and the grammar, and on what is too early."""
    if all(turn.request.allowed_ids is None and turn.allowed is None and not turn.early for turn in turns):
        return logits
    logits = logits.clone()
    for row, turn in enumerate(turns):
        if turn.request.allowed_ids is not None:
            ids = torch.tensor(list(turn.request.allowed_ids), device=logits.device)
            kept = logits[row, ids]
            logits[row] = -torch.inf
            logits[row, ids] = kept
        if turn.allowed is not None:
            logits[row].masked_fill_(~turn.allowed.to(logits.device), -torch.inf)
        if turn.early:
            without = logits[row].index_fill(0, torch.tensor(list(turn.early), device=logits.device), -torch.inf)
            if bool((without > -torch.inf).any()):
                logits[row] = without
    return logits


def _columns(entries: Entries, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, ids, values = zip(*entries, strict=True)
    device = like.device
    return (
        torch.tensor(rows, device=device),
        torch.tensor(ids, device=device),
        torch.tensor(values, dtype=like.dtype, device=device),
    )
