"""Labels drawn from the model's own predictions, for Sophia's estimate of the curvature."""

from __future__ import annotations

import torch
from torch import Tensor

from llmctl.model.likelihood import LOGITS_AT_ONCE, Tensors, hidden_states
from llmctl.model.transformer import Transformer
from llmctl.tokens.batch import IGNORE


def generator_of(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The random numbers of one step's estimate, a function of the run's seed and the step alone."""
    return torch.Generator(device).manual_seed((seed * 1_000_003 + step) % 2**63)


@torch.no_grad()
def sampled_labels(model: Transformer, batch: Tensors, generator: torch.Generator) -> Tensor:
    """`batch.labels` with each label replaced by one drawn from the model's distribution there; int64 [B,T]."""
    hidden, _ = hidden_states(model, batch)
    wanted = batch.labels != IGNORE
    drawn = [
        torch.multinomial(model.logits(part).float().softmax(dim=-1), 1, generator=generator)[:, 0]
        for part in torch.split(hidden[wanted], max(1, LOGITS_AT_ONCE // model.vocab_size))
    ]
    labels = batch.labels.clone()
    if drawn:
        labels[wanted] = torch.cat(drawn)
    return labels
