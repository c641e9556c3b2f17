"""A batch of packed rows, as the model and the loss take it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORE = -100  # the label that torch's cross-entropy leaves out
PADDING_DOCUMENT = -1


@dataclass(frozen=True)
class Batch:
    """B rows of T tokens. All arrays are [B, T].

    Attributes:
        tokens: int64, padded with the tokenizer's pad id.
        positions: int64, 0-based place within the document's slice; restarts at each document, 0 on padding.
        documents: int32, number of the document slice within its row, 0-based; -1 on padding.
        labels: int64, the next token of the same document; -100 where nothing is to be predicted.
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    documents: NDArray[np.int32]
    labels: NDArray[np.int64]

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
    def targets(self) -> int:
        """How many positions have something to predict: the denominator of the mean loss."""
        return int(np.count_nonzero(self.labels != IGNORE))

    def without_targets(self) -> Batch:
        """The same rows with nothing to predict."""
        return dataclasses.replace(self, labels=np.full_like(self.labels, IGNORE))

    def with_targets_in(self, columns: slice) -> Batch:
        """The same rows with something to predict in these columns only."""
        labels = np.full_like(self.labels, IGNORE)
        labels[:, columns] = self.labels[:, columns]
        return dataclasses.replace(self, labels=labels)

    def slice(self, rows: slice) -> Batch:
        """The batch of some of the rows, without copying."""
        return Batch(self.tokens[rows], self.positions[rows], self.documents[rows], self.labels[rows])
