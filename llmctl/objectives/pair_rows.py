"""Pairs of answers in rows, and the log-probabilities of the answers in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.config.errors import UsageError
from llmctl.model.likelihood import LOGITS_AT_ONCE, Tensors, hidden_states, losses_of
from llmctl.model.transformer import Transformer
from llmctl.objectives.pairs import Pair, Pairs
from llmctl.objectives.preference import Answers
from llmctl.tokens.batch import IGNORE, PADDING_DOCUMENT, Batch
from llmctl.tokens.fit import fit_whole

Doubles = NDArray[np.float64]


class PackedPairs:
    """Whole pairs in rows of `seq_len` tokens, several to a row; a `RowSource`.

    Answers in one row do not see one another, and positions restart at each. The p-th pair of a row is its
    documents 2 p and 2 p + 1. `Batch.units` counts pairs, and `Batch.beside` holds, for P slots in each row:

        present    bool [B, P], whether there is a pair in the slot
        reference  float64 [B, P, 2], log-probability of either answer under the reference model
        ends       int64 [B, P, 2], the column of the token that ends either answer
        margin     float64 [B, P]
        desirable  bool [B, P]

    Args:
        pairs: at least one.
        seq_len: length of a row; that of the longest pair where None.
        pad_id: what fills rows.
        references: float64 [pairs, 2]; None where the loss has no reference.

    Raises:
        UsageError: a pair is longer than a row.
    """

    def __init__(
        self, pairs: Sequence[Pair], seq_len: int | None, pad_id: int, references: Doubles | None = None
    ) -> None:
        self.pairs = pairs
        lengths = np.array([pair.tokens for pair in pairs], dtype=np.int64)
        self.seq_len = int(lengths.max(initial=2)) if seq_len is None else seq_len
        if lengths.max(initial=0) > self.seq_len:
            at = int(lengths.argmax())
            raise UsageError(
                f"row_tokens ({self.seq_len}) is below the {lengths[at]} tokens of the longest pair, "
                f"of {pairs[at].document}",
                hint=f"give row_tokens={lengths[at]} or more, or a smaller max_tokens with overlong=drop",
            )
        self.pad_id = pad_id
        self._references = np.zeros((len(pairs), 2)) if references is None else references
        self._layout = fit_whole(lengths, self.seq_len)
        self.count = self._layout.rows
        self.slots = int(np.diff(self._layout.first).max(initial=0))

    def pairs_of(self, row: int) -> NDArray[np.int64]:
        """Which pairs a row holds, in order."""
        return self._layout.documents_of(row)

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """The rows at `indices`, in that order."""
        shape, slots = (len(indices), self.seq_len), (len(indices), self.slots)
        tokens = np.full(shape, self.pad_id, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        documents = np.full(shape, PADDING_DOCUMENT, dtype=np.int32)
        labels = np.full(shape, IGNORE, dtype=np.int64)
        present, desirable = np.zeros(slots, dtype=np.bool_), np.zeros(slots, dtype=np.bool_)
        margin, reference = np.zeros(slots), np.zeros((*slots, 2))
        ends = np.zeros((*slots, 2), dtype=np.int64)
        for row, index in enumerate(indices):
            at = 0
            for slot, which in enumerate(self.pairs_of(int(index)).tolist()):
                pair = self.pairs[which]
                present[row, slot], desirable[row, slot], margin[row, slot] = True, pair.desirable, pair.margin
                reference[row, slot] = self._references[which]
                for side, answer in enumerate(pair.answers):
                    place = slice(at, at + answer.ids.size)
                    tokens[row, place], labels[row, place] = answer.ids, answer.labels
                    positions[row, place], documents[row, place] = np.arange(answer.ids.size), 2 * slot + side
                    ends[row, slot, side] = at + answer.end
                    at += answer.ids.size
        beside = {"present": present, "reference": reference, "ends": ends, "margin": margin, "desirable": desirable}
        units = np.count_nonzero(present, axis=1).astype(np.int64)
        return Batch(tokens, positions, documents, labels, units, beside)


def packed_sides(
    found: Pairs, row_tokens: int | None, pad_id: int, references: Doubles | None = None
) -> tuple[PackedPairs, PackedPairs]:
    """Rows to learn from and held-out rows; the arguments are those of `PackedPairs`, of all pairs."""
    kept, held = (
        PackedPairs(
            [found.pairs[at] for at in np.flatnonzero(which)],
            row_tokens,
            pad_id,
            None if references is None else references[which],
        )
        for which in (~found.held, found.held)
    )
    return kept, held


def answer_logps(
    model: Transformer, batch: Tensors, sides: Sequence[int] = (0, 1), logits_at_once: int = LOGITS_AT_ONCE
) -> list[tuple[Tensor, Tensor]]:
    """Of the answers on the given sides: the sum of log p over their labels, fp64 [N], and how many those are, [N].

    N is the number of pairs in the batch, by row and slot. An answer's sum does not depend on what it shares a row
    or batch with.
    """
    present = batch.beside["present"]
    rows, slots = present.shape
    labels = batch.labels
    if len(sides) == 1:  # the other side's logits are not made
        labels = labels.masked_fill(batch.documents % 2 != sides[0], IGNORE)
    losses, _ = losses_of(model, hidden_states(model, batch)[0], labels, logits_at_once)
    wanted = labels != IGNORE
    row_of = wanted.nonzero()[:, 0]
    where = row_of * (2 * slots) + batch.documents[wanted].long()
    sums = torch.zeros(rows * slots * 2, dtype=torch.float64, device=losses.device)
    sums = sums.index_add(0, where, -losses.double()).view(rows, slots, 2)
    counts = torch.bincount(where, minlength=rows * slots * 2).view(rows, slots, 2)
    return [(sums[..., side][present], counts[..., side][present]) for side in sides]


def answers_of(model: Transformer, batch: Tensors, *, referenced: bool) -> tuple[Answers, Answers]:
    """The two answers of each pair, with the reference's figures where there is one."""
    reference = batch.beside["reference"][batch.beside["present"]]
    chosen, rejected = (
        Answers(logps, tokens, reference[:, side] if referenced else None)
        for side, (logps, tokens) in enumerate(answer_logps(model, batch))
    )
    return chosen, rejected
