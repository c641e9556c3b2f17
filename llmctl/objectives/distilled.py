"""What a student learns of its teacher, as the training loop takes it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from llmctl.config.distill import DistillConfig
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


@dataclass(frozen=True)
class Distillation:
    """(1 - a) divergence from the teacher + a cross-entropy with the text, at each position that has a target.

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
    names: ClassVar[tuple[str, ...]] = ("divergence", "cross_entropy")

    def loss(self, model: Transformer, batch: Tensors) -> Tensor:
        """Sum over the targets of the batch; what the model learns beside is in the gradient alone."""
        aside = learns_beside(model)
        if aside:
            begin(model)
        hidden, attend = hidden_states(model, batch)
        divergences, entropies = self.parts(model, hidden, batch)
        share = self.config.cross_entropy
        losses = torch.lerp(divergences, entropies, share) if share else divergences
        main = tallied(model, Scored(losses, summed(self.names, (divergences, entropies))))
        return with_gradient_of(main, beside(model, batch, hidden, attend)) if aside else main

    def parts(self, model: Transformer, hidden: Tensor, batch: Tensors) -> tuple[Tensor, Tensor]:
        """Divergence and cross-entropy of each target, [N] each, in row order.

        Neither model's logits are ever held but for one chunk of positions, which is made again in the backward pass
        where there are several.

        Args:
            model: the student.
            hidden: its states [B,T,D].
            batch: the rows.
        """
        wanted = batch.labels != IGNORE
        given = (hidden[wanted], batch.labels[wanted], *self.teaching.seen(batch, wanted))
        size = max(1, self.chunk // model.vocab_size)
        if given[0].shape[0] <= size:
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
        divergences, entropies = self.objective.parts(model, hidden_states(model, batch)[0], batch)
        text = self._text.sums_of(entropies, batch.labels[batch.labels != IGNORE])
        return torch.cat([text, divergences.double().sum().reshape(1)])

    def total(self, values: Sequence[float]) -> HeldOutDistilled:
        """Means."""
        text = self._text.total(values[:-1])
        return HeldOutDistilled(text, values[-1] / text.targets if text.targets else math.nan)
