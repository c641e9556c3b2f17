"""Where a teacher's distributions come from: the teacher itself, or what was kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llmctl.config.distill import Rest
from llmctl.model.likelihood import Tensors, hidden_states
from llmctl.model.transformer import Transformer
from llmctl.objectives.divergences import lumped, renormalised, tempered


class Teaching(Protocol):
    """What a student is held against, at the positions of a batch that have a target."""

    def seen(self, batch: Tensors, wanted: Tensor) -> tuple[Tensor, ...]:
        """What is needed at each of the N positions of the mask `wanted` [B,T]: tensors [N,…] without gradient."""
        ...

    def compared(self, logits: Tensor, temperature: float, *seen: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of teacher and student over the same classes, [n,C] each.

        Args:
            logits: the student's, [n,V].
            temperature: divides the logits of both.
            seen: the same n positions of what `seen` gave.
        """
        ...


class Live:
    """A teacher that reads every batch itself. Only its hidden states are held; logits are made chunk by chunk.

    Args:
        model: of the student's vocabulary; it is moved to where the batches are.
    """

    def __init__(self, model: Transformer) -> None:
        self.model = model.eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def seen(self, batch: Tensors, wanted: Tensor) -> tuple[Tensor, ...]:
        """Hidden states [N,D]."""
        return (hidden_states(self.model, batch)[0][wanted],)

    def compared(self, logits: Tensor, temperature: float, *seen: Tensor) -> tuple[Tensor, Tensor]:
        """Over the whole vocabulary."""
        with torch.no_grad():
            teacher = tempered(self.model.logits(*seen), temperature)
        return teacher, tempered(logits, temperature)


@dataclass(frozen=True)
class Kept:
    """The likeliest tokens that were kept of a teacher, in `Batch.beside`: `top_ids` and `top_logprobs`.

    Attributes:
        rest: what becomes of the mass of all other tokens.
    """

    rest: Rest

    def seen(self, batch: Tensors, wanted: Tensor) -> tuple[Tensor, ...]:
        """Ids int64 [N,K], and the log-probabilities of these and of all others together, [N,K + 1]."""
        return batch.beside["top_ids"][wanted].long(), batch.beside["top_logprobs"][wanted]

    def compared(self, logits: Tensor, temperature: float, *seen: Tensor) -> tuple[Tensor, Tensor]:
        """Over the kept tokens, and one class of all others."""
        ids, classes = seen
        return renormalised(classes) if self.rest == "renormalise" else classes, lumped(
            tempered(logits, temperature), ids
        )
