"""What a student learns of its teacher, as the training loop takes it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy
from torch.utils.checkpoint import checkpoint

from llmctl.config.distill import DistillConfig, HiddenConfig
from llmctl.model.likelihood import Tensors, hidden_states
from llmctl.model.transformer import Transformer
from llmctl.objectives.beside import begin, beside, learns_beside, with_gradient_of
from llmctl.objectives.divergences import divergence
from llmctl.objectives.preferred import Scored, summed, tallied
from llmctl.objectives.teachers import Teaching
from llmctl.tokens.batch import IGNORE, Batch
from llmctl.train.heldout import HeldOut, HeldOutRows
from llmctl.train.loader import RowSource
from llmctl.train.strategy import Strategy

CHUNK = 1 << 24  # elements of a chunk of one model's logits; half a dozen tensors of that size exist at one time

PROJECTION: Final = "projection"
PROJECTION_WEIGHT: Final = "projection.weight"


@dataclass(frozen=True)
class Distillation:
    """(1 - a) divergence from the teacher + a cross-entropy with the text, at each position that has a target.

    With `hidden`, plus its weight times the distance of the last hidden states.

    Attributes:
        rows: to learn from.
        teaching: where the teacher's distributions come from.
        config: the divergence, and a.
        chunk: elements of a chunk of logits.
    """

    rows: RowSource
    teaching: Teaching
    config: DistillConfig
    chunk: int = CHUNK

    def loss(self, model: Transformer, batch: Tensors) -> Tensor:
        """Sum over the targets of the batch; what the model learns beside is in the gradient alone."""
        aside = learns_beside(model)
        if aside:
            begin(model)
        hidden, attend = hidden_states(model, batch)
        wanted = batch.labels != IGNORE
        seen = self.teaching.seen(batch, wanted)
        divergences, entropies = self.parts(model, hidden[wanted], batch.labels[wanted], seen)
        share, figures = self.config.cross_entropy, {"divergence": divergences, "cross_entropy": entropies}
        losses = torch.lerp(divergences, entropies, share) if share else divergences
        if self.config.hidden is not None:
            figures["hidden"] = distances(projected(model, hidden[wanted]), seen[0], self.config.hidden)
            losses = losses + self.config.hidden.weight * figures["hidden"]
        main = tallied(model, Scored(losses, summed(list(figures), list(figures.values()))))
        return with_gradient_of(main, beside(model, batch, hidden, attend)) if aside else main

    def parts(
        self, model: Transformer, hidden: Tensor, labels: Tensor, seen: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Divergence and cross-entropy of each of N targets, [N] each.

        Neither model's logits are ever held but for one chunk of positions, which is made again in the backward pass
        where there are several.

        Args:
            model: the student.
            hidden: its states at them, [N,D].
            labels: int64 [N].
            seen: what `Teaching.seen` gave of them.
        """
        given = (hidden, labels, *seen)
        size = max(1, self.chunk // model.vocab_size)
        if hidden.shape[0] <= size:
            return self._of_chunk(model, *given)
        run: Callable[..., tuple[Tensor, Tensor]] = self._of_chunk
        if torch.is_grad_enabled():
            run = functools.partial(checkpoint, self._of_chunk, use_reentrant=False, preserve_rng_state=False)
        chunks = [run(model, *part) for part in zip(*(torch.split(one, size) for one in given), strict=True)]
        divergences, entropies = zip(*chunks, strict=True)
        return torch.cat(divergences), torch.cat(entropies)

    def _of_chunk(self, model: Transformer, hidden: Tensor, labels: Tensor, *seen: Tensor) -> tuple[Tensor, Tensor]:
        logits = model.logits(hidden)
        exact = logits if logits.dtype == torch.float64 else logits.float()
        teacher, student = self.teaching.compared(exact, self.config.loss.temperature, *seen)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.cross_entropy > 0):
            entropies = cross_entropy(exact, labels, reduction="none")
        return divergence(teacher, student, self.config.loss), entropies


def add_projection(model: Transformer, width: int, seed: int) -> None:
    """Give the model a matrix [width,D] to the teacher's width, trained with it; the identity where that is its own."""
    own = model.config.width
    drawn = torch.randn(width, own, generator=torch.Generator().manual_seed(seed)) / math.sqrt(own)
    layer = nn.Linear(own, width, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(own) if width == own else drawn)
    model.add_module(PROJECTION, layer.to(model.device, model.dtype))


def projected(model: Transformer, hidden: Tensor) -> Tensor:
    """[N,D] to [N,width]."""
    made: Tensor = model.get_submodule(PROJECTION)(hidden)
    return made


def distances(states: Tensor, teacher: Tensor, config: HiddenConfig) -> Tensor:
    """How far states are from the teacher's, [N,D] each: [N], in fp32 (fp64 where they are)."""
    exact = torch.float64 if states.dtype == torch.float64 else torch.float32
    states, teacher = states.to(exact), teacher.to(exact)
    if config.measure == "cosine":
        return 1 - cosine_similarity(states, teacher, dim=-1)
    return (states - teacher).square().mean(dim=-1)


@dataclass(frozen=True)
class HeldOutDistilled:
    """Both of what there is to say of held-out text: how well it is predicted, and how far the teacher is.

    Attributes:
        text: as for every model of text.
        divergence: mean over the targets, its scale included; NaN where there were none.
    """

    text: HeldOut
    divergence: float

    @property
    def loss(self) -> float:
        """Mean nats per target, of the text's own tokens."""
        return self.text.loss

    @property
    def figures(self) -> dict[str, int | float]:
        """Those of the text, and `heldout_divergence`."""
        more = {"heldout_divergence": self.divergence} if math.isfinite(self.divergence) else {}
        return {**self.text.figures, **more}

    @property
    def told(self) -> str:
        """Those of the text, and the divergence."""
        return f"{self.text.told}, {self.divergence:.4f} from the teacher"


@dataclass(frozen=True)
class HeldOutTaught:
    """Held-out text under student and teacher; a `HeldOutSource`.

    Attributes:
        rows: of which a fixed sample is scored.
        byte_lengths: int32 [V], bytes that each id stands for.
        objective: what is learned.
    """

    rows: RowSource
    byte_lengths: NDArray[np.int32]
    objective: Distillation

    @functools.cached_property
    def _text(self) -> HeldOutRows:
        return HeldOutRows(self.rows, self.byte_lengths)

    def bytes_of(self, batch: Batch) -> int:
        """The loss is no likelihood of text."""
        del batch
        return 0

    def look_ahead(self, batches: Iterable[Batch], strategy: Strategy) -> None:
        """Each target stands by itself."""

    def sums(self, model: Transformer, batch: Tensors) -> Tensor:
        """Those of `HeldOut`, and the sum of the divergences."""
        wanted = batch.labels != IGNORE
        hidden, labels = hidden_states(model, batch)[0][wanted], batch.labels[wanted]
        seen = self.objective.teaching.seen(batch, wanted)
        divergences, entropies = self.objective.parts(model, hidden, labels, seen)
        text = self._text.sums_of(entropies, labels)
        return torch.cat([text, divergences.double().sum().reshape(1)])

    def total(self, values: Sequence[float]) -> HeldOutDistilled:
        """Means."""
        text = self._text.total(values[:-1])
        return HeldOutDistilled(text, values[-1] / text.targets if text.targets else math.nan)
