"""How good a text is, by a fastText classifier that `llmctl classifier` trained."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from llmctl.data.clean.fasttext_model import load_model, predict
from llmctl.data.clean.kernel import Measure

POSITIVE = "positive"
NEGATIVE = "negative"


class Quality(Measure):
    """The column `quality`: the probability, 0 to 1, that a text is of the positive kind.

    Args:
        path: the model.
        most_characters: of every text, as much from its start.
        min_score: the reason `quality_score` for lower ones; None drops none.
    """

    column = "quality"

    def __init__(self, path: Path, most_characters: int, min_score: float | None = None) -> None:
        self.path = path
        self.most_characters = most_characters
        self.min_score = min_score

    @cached_property
    def model(self) -> Any:
        """The model, loaded when the first batch comes."""
        return load_model(self.path)

    def values(self, batch: pa.RecordBatch) -> list[float | None]:
        """Every document's score."""
        labels, certain = predict(self.model, batch.column("text").to_pylist(), self.most_characters)
        # Of a text without a known feature nothing can be said: 0.
        return [float(p) if label == POSITIVE else 1.0 - float(p) if label else 0.0
                for label, p in zip(labels, certain, strict=True)]  # fmt: skip

    def judge(self, value: float) -> str | None:
        """`quality_score`."""
        return "quality_score" if self.min_score is not None and value < self.min_score else None


class AboveQuantile(Measure):
    """Drops what scored below a quantile that an earlier pass over all documents found: `quality_quantile`."""

    column = "quality"

    def __init__(self, least: float) -> None:
        self.least = least

    def values(self, batch: pa.RecordBatch) -> list[float | None]:
        """The scores that are there already."""
        found: list[float | None] = batch.column("quality").to_pylist()
        return found

    def judge(self, value: float) -> str | None:
        """`quality_quantile`."""
        return "quality_quantile" if value < self.least else None
