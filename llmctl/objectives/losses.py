"""Losses as pure functions of a model and packed rows; each is a sum over targets, for one global denominator."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from llmctl.model.likelihood import LOGITS_AT_ONCE, Tensors, hidden_states, losses_of, target_losses
from llmctl.model.transformer import Transformer
from llmctl.objectives.beside import begin, beside, learns_beside, with_gradient_of
from llmctl.train.loader import RowSource


def next_token(
    model: Transformer, batch: Tensors, logits_at_once: int = LOGITS_AT_ONCE, *, z_loss: float = 0.0
) -> Tensor:
    """Σ -log p(label | what comes before in its document) over all positions with a label; fp32 scalar.

    Positions without a label (padding, document ends, prompts) take no part, so the sum is the same however
    the documents are packed, padded and dealt to batches. With `z_loss`, plus that times (log Z)^2 at each of them,
    where Z is what the softmax divides by (Chowdhery et al. 2022, PaLM, section 5). While a model is trained, what it
    learns beside (`llmctl.objectives.beside`) is in the gradient and not in the value.
    """
    if not learns_beside(model):
        losses, _ = target_losses(model, batch, logits_at_once, z_loss=z_loss)
        return losses.sum()
    begin(model)
    hidden, attend = hidden_states(model, batch)
    losses, _ = losses_of(model, hidden, batch.labels, logits_at_once, z_loss=z_loss)
    return with_gradient_of(losses.sum(), beside(model, batch, hidden, attend, logits_at_once))


@dataclass(frozen=True)
class NextToken:
    """The objective of a language model: each token that has a label, from those before it in its document.

    Attributes:
        rows: to learn from.
        z_loss: weight of (log Z)^2.
    """

    rows: RowSource
    z_loss: float = 0.0

    def loss(self, model: Transformer, batch: Tensors) -> Tensor:
        """`next_token`."""
        return next_token(model, batch, z_loss=self.z_loss)
