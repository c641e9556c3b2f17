"""Negative log-likelihood of the targets of packed rows: the one place where training's logits meet labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from llmctl.model import native
from llmctl.model.attention import Attend, holds_one_each
from llmctl.model.kernels import attend_through
from llmctl.model.sequence import CutAttention
from llmctl.model.transformer import Transformer
from llmctl.model.unfolded import unfolded
from llmctl.tokens.batch import HOME, IGNORE, NOISE, ROWS, Batch

LOGITS_AT_ONCE = 1 << 26  # elements of a chunk of logits: 256 MiB in fp32


@dataclass(frozen=True)
class Tensors:
    """A `Batch` on the device that computes; all [B, T], int64 but for `documents`, int32.

    Attributes:
        one_each: whether each row holds one document, which is known before the copy to the device.
        beside: `Batch.beside`.
    """

    tokens: Tensor
    positions: Tensor
    documents: Tensor
    labels: Tensor
    one_each: bool
    beside: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> Tensors:
        """Copy `batch` to `device`."""
        arrays = (batch.tokens, batch.positions, batch.documents, batch.labels)
        tokens, positions, documents, labels = (torch.from_numpy(a).to(device, non_blocking=True) for a in arrays)
        beside = {name: torch.from_numpy(a).to(device, non_blocking=True) for name, a in batch.beside.items()}
        return cls(tokens, positions, documents, labels, holds_one_each(torch.from_numpy(batch.documents)), beside)


def cross_entropies(
    logits_of: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    *,
    logits_at_once: int,
    vocab_size: int,
    z_loss: float = 0.0,
) -> Tensor:
    """-log softmax(logits)[target] for each of N positions; [N], in fp32 (fp64 where the logits are).

    Where N x vocabulary exceeds `logits_at_once`, the logits are made chunk by chunk and made again in the
    backward pass, so that no more than one chunk of them is ever held.

    Args:
        logits_of: hidden [n, D] to logits [n, V].
        hidden: [N, D].
        targets: int64 [N], each in [0, V).
        logits_at_once: elements of one chunk.
        vocab_size: V.
        z_loss: weight of (log Z)^2 that is added, where Z is the sum of the exponentiated logits.
    """

    def of_chunk(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = logits_of(hidden)
        exact = logits if logits.dtype == torch.float64 else logits.float()
        if native.serves(exact):
            losses = native.cross_entropies(exact, targets)
        else:
            losses = functional.cross_entropy(exact, targets, reduction="none")
        return losses + z_loss * exact.logsumexp(dim=-1).square() if z_loss else losses

    size = max(1, logits_at_once // vocab_size)
    if hidden.shape[0] <= size:
        return of_chunk(hidden, targets)
    chunks = []
    for part, wanted in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
        if torch.is_grad_enabled():
            chunks.append(checkpoint(of_chunk, part, wanted, use_reentrant=False, preserve_rng_state=False))
        else:
            chunks.append(of_chunk(part, wanted))
    return torch.cat(chunks)


def target_losses(
    model: Transformer, batch: Tensors, logits_at_once: int = LOGITS_AT_ONCE, *, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Loss and id of every target of packed rows, in row order.

    Only positions that have a target pass through the output matrix: padding and prompts cost nothing there.
    `z_loss` is that of `cross_entropies`.

    Returns:
        losses [N] in fp32 and the target ids int64 [N]; N may be 0.
    """
    return losses_of(model, hidden_states(model, batch)[0], batch.labels, logits_at_once, z_loss=z_loss)


def hidden_states(model: Transformer, batch: Tensors) -> tuple[Tensor, Attend]:
    """[B,T,D] of packed rows, and what each of their positions sees.

    Where ranks share rows, only this rank's part of the columns is computed, and the others are zero. Noise that the
    rows carry (`NOISE` of what is beside them) is added to the embeddings. Documents may lie folded (`ROWS`).
    """
    if ROWS in batch.beside:
        attend: Attend = unfolded(model.attention_backend, batch.beside[ROWS][0], batch.beside[HOME][0])
        return model(batch.tokens, batch.positions, attend), attend
    attend = attend_through(model.attention_backend, batch.documents, one_each=batch.one_each)
    cut, noise = model.sequence, batch.beside.get(NOISE)
    if cut is None:
        return model(batch.tokens, batch.positions, attend, noise), attend
    attend, noise = CutAttention(cut, attend), None if noise is None else cut.of(noise)
    return cut.spread(model(cut.of(batch.tokens), cut.of(batch.positions), attend, noise)), attend


def losses_of(
    model: Transformer, hidden: Tensor, labels: Tensor, logits_at_once: int = LOGITS_AT_ONCE, *, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`target_losses` of hidden states [B,T,D] and labels [B,T]."""
    wanted = labels != IGNORE
    targets = labels[wanted]
    return losses_at(model, hidden[wanted], targets, logits_at_once, z_loss=z_loss), targets


def losses_at(
    model: Transformer,
    states: Tensor,
    targets: Tensor,
    logits_at_once: int = LOGITS_AT_ONCE,
    *,
    temperature: float = 1.0,
    z_loss: float = 0.0,
) -> Tensor:
    """`cross_entropies` of a model's logits, at a temperature, from hidden states [N,D] and targets [N]."""
    small = len(states) * model.vocab_size <= logits_at_once
    alone = model.projects_plainly and not z_loss and not torch.is_autocast_enabled(states.device.type)
    if small and alone and native.serves(states, model.output_weight):
        cooled = states if temperature == 1.0 else states / temperature
        return native.projected_cross_entropies(cooled, model.output_weight, targets)

    def logits_of(some: Tensor) -> Tensor:
        logits = model.logits(some)
        return logits if temperature == 1.0 else logits.float() / temperature

    size = model.vocab_size
    return cross_entropies(logits_of, states, targets, logits_at_once=logits_at_once, vocab_size=size, z_loss=z_loss)
