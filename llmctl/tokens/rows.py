"""Packed rows on disk, read through memory maps (schema llmctl.rows/1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmctl.store.artifact import Artifact
from llmctl.tokens.batch import Batch
from llmctl.tokens.order import rows_of_step

__all__ = ["Rows", "rows_of_step"]


class Rows:
    """One split of a rows artifact. Memory-mapped: opening costs nothing, reading pages in what is read."""

    count: int
    seq_len: int
    pad_id: int

    @classmethod
    def open(cls, artifact: Artifact, split: str) -> Rows:
        """Map the files of `split` (`train` or `heldout`) after checking their sizes against the manifest."""
        raise NotImplementedError

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """The rows at `indices`, in that order."""
        raise NotImplementedError
