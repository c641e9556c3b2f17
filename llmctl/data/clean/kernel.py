"""The shapes of a kernel, a function from Arrow batch to Arrow batch: rewrite texts, judge them, or measure them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

REASON = pa.field("reason", pa.string())
VALUE = pa.field("value", pa.float64())


class Verdict(NamedTuple):
    """Why a document is dropped, and the value that broke the rule (the thresholds are in the configuration)."""

    reason: str
    value: float


class Rewrite(ABC):
    """Replaces the column `text`."""

    @abstractmethod
    def rewrite(self, text: str) -> str:
        """The new text."""

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`batch` with each text rewritten."""
        return with_text(batch, [self.rewrite(text) for text in batch.column("text").to_pylist()])


class Rule(ABC):
    """Fills the columns `reason` and `value` of the documents that it drops and no earlier rule has dropped."""

    @abstractmethod
    def judge(self, text: str) -> Verdict | None:
        """The verdict on one document; None keeps it."""

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`batch` with `reason` and `value` brought up to date."""
        batch = with_verdicts(batch)
        reasons, values = batch.column("reason").to_pylist(), batch.column("value").to_pylist()
        for row, text in enumerate(batch.column("text").to_pylist()):
            if reasons[row] is None and (verdict := self.judge(text)):
                reasons[row], values[row] = verdict
        names = batch.schema.names
        batch = batch.set_column(names.index("reason"), REASON, pa.array(reasons, REASON.type))
        return batch.set_column(names.index("value"), VALUE, pa.array(values, VALUE.type))


class Measure(ABC):
    """Writes a column with a figure of each document, and drops those whose figure is out of bounds."""

    column: str

    @abstractmethod
    def values(self, batch: pa.RecordBatch) -> list[float | None]:
        """The figure of every document; None where there is none."""

    @abstractmethod
    def judge(self, value: float) -> str | None:
        """The reason to drop a document with this figure; None keeps it."""

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`batch` with the column, and with `reason` and `value` brought up to date."""
        found = self.values(batch)
        batch = with_verdicts(with_column(batch, self.column, pa.array(found, pa.float64())))
        reasons = [None if value is None else self.judge(value) for value in found]
        return with_reasons(batch, reasons, found)


class NotEmpty(Rule):
    """Drops what has nothing left but white space, for the reason given."""

    def __init__(self, reason: str = "empty") -> None:
        self.reason = reason

    def judge(self, text: str) -> Verdict | None:
        """The reason, where there is no text."""
        return None if text.strip() else Verdict(self.reason, 0.0)


def with_text(batch: pa.RecordBatch, texts: list[str]) -> pa.RecordBatch:
    """`batch` with the column `text` replaced. A lone surrogate, which is no character, becomes `?`."""
    try:
        column = pa.array(texts, pa.string())
    except UnicodeEncodeError:
        column = pa.array([text.encode(errors="replace").decode() for text in texts], pa.string())
    index = batch.schema.get_field_index("text")
    return batch.set_column(index, batch.schema.field(index), column)


def with_column(batch: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    """`batch` with a column replaced, or added before the verdict columns where it is new."""
    names = batch.schema.names
    field = pa.field(name, column.type)
    if name in names:
        return batch.set_column(names.index(name), field, column)
    place = names.index("reason") if "reason" in names else len(names)
    return batch.add_column(place, field, column)


def with_reasons(
    batch: pa.RecordBatch, reasons: Sequence[str | None], values: Sequence[float | None]
) -> pa.RecordBatch:
    """`batch` with reason and value of the documents that have no reason yet."""
    batch = with_verdicts(batch)
    old_reasons, old_values = batch.column("reason").to_pylist(), batch.column("value").to_pylist()
    for row, reason in enumerate(reasons):
        if reason is not None and old_reasons[row] is None:
            old_reasons[row], old_values[row] = reason, values[row]
    batch = with_column(batch, "reason", pa.array(old_reasons, REASON.type))
    return with_column(batch, "value", pa.array(old_values, VALUE.type))


def with_verdicts(batch: pa.RecordBatch) -> pa.RecordBatch:
    """`batch` with the columns `reason` and `value`, null where they are new."""
    if "reason" in batch.schema.names:
        return batch
    batch = batch.append_column(REASON, pa.nulls(batch.num_rows, REASON.type))
    return batch.append_column(VALUE, pa.nulls(batch.num_rows, VALUE.type))


def split_by_verdict(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """(kept, without the verdict columns; dropped, with them)."""
    keep = pc.is_null(batch.column("reason"))
    columns = [name for name in batch.schema.names if name not in {"reason", "value"}]
    return batch.filter(keep).select(columns), batch.filter(pc.invert(keep))
