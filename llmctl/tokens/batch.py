"""A batch of packed rows, as the model and the loss take it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORE = -100  # the label that torch's cross-entropy leaves out
PADDING_DOCUMENT = -1
NOISE = "noise"
"""In `Batch.beside`: float32 [B, T, D], what is added to the embeddings of the tokens."""
ROWS, HOME = "rows", "home"
"""In `Batch.beside` of a batch of one row in which documents that begin alike lie folded: the documents as rows of its
places, int64 [1, R, T], -1 behind their ends; and where among the R x T each place is to be found, int64 [1, N]."""


@dataclass(frozen=True)
class Batch:
    """B rows of T tokens. The first four arrays are [B, T].

    Attributes:
        tokens: int64, padded with the tokenizer's pad id.
        positions: int64, 0-based place within the document's slice; restarts at each document, 0 on padding.
        documents: int32, number of the document slice within its row, 0-based; -1 on padding.
        labels: int64, the next token of the same document; -100 where nothing is to be predicted.
        units: int64 [B], how many of what the loss is a mean over each row holds; None where that is its labels.
        beside: what else an objective needs of the rows, by name; each [B, …].
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    documents: NDArray[np.int32]
    labels: NDArray[np.int64]
    units: NDArray[np.int64] | None = None
    beside: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.tokens.shape
        if len(shape) != 2 or any(a.shape != shape for a in (self.positions, self.documents, self.labels)):
            shapes = [a.shape for a in (self.tokens, self.positions, self.documents, self.labels)]
            raise ValueError(f"the arrays of a batch must have one shape [B, T], got {shapes}")

    @property
    def rows(self) -> int:
        """B."""
        return int(self.tokens.shape[0])

    @property
    def reach(self) -> int:
        """Places that attention sees together: T, or those of the longest document where they lie folded."""
        return int(self.beside.get(ROWS, self.tokens).shape[-1])

    @property
    def targets(self) -> int:
        """The denominator of the mean loss: how many positions have something to predict, or how many units."""
        return int(np.count_nonzero(self.labels != IGNORE) if self.units is None else self.units.sum())

    def without_targets(self) -> Batch:
        """The same rows with nothing to predict."""
        units = None if self.units is None else np.zeros_like(self.units)
        return dataclasses.replace(self, labels=np.full_like(self.labels, IGNORE), units=units)

    def with_targets_in(self, columns: slice) -> Batch:
        """The same rows with something to predict in these columns only."""
        labels = np.full_like(self.labels, IGNORE)
        labels[:, columns] = self.labels[:, columns]
        return dataclasses.replace(self, labels=labels)

    def slice(self, rows: slice) -> Batch:
        """The batch of some of the rows, without copying."""
        units = None if self.units is None else self.units[rows]
        beside = {name: values[rows] for name, values in self.beside.items()}
        return Batch(self.tokens[rows], self.positions[rows], self.documents[rows], self.labels[rows], units, beside)


def padded_groups(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices grouped so that a group padded to its longest stays within `batch_tokens`, the longest group first."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    groups: list[list[int]] = []
    for index in order:
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= batch_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
