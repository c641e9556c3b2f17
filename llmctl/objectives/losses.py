"""Losses as pure functions of a model and packed rows; each is a sum over targets, for one global denominator."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from llmctl.model.likelihood import LOGITS_AT_ONCE, Tensors, target_losses
from llmctl.model.transformer import Transformer
from llmctl.train.loader import RowSource


def next_token(
    model: Transformer, batch: Tensors, logits_at_once: int = LOGITS_AT_ONCE, *, z_loss: float = 0.0
) -> Tensor:
    """Σ -log p(label | what comes before in its document) over all positions with a label; fp32 scalar.

    Positions without a label (padding, document ends, prompts) take no part, so the sum is the same however
    the documents are packed, padded and dealt to batches. With `z_loss`, plus that times (log Z)^2 at each of them,
    where Z is what the softmax divides by (Chowdhery et al. 2022, PaLM, section 5).
    """
    losses, _ = target_losses(model, batch, logits_at_once, z_loss=z_loss)
    return losses.sum()


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
