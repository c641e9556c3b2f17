"""One part in one pass: kernels in order, what they drop set aside and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmctl.data.clean.boilerplate import LineCounts
from llmctl.data.clean.chain import SEGMENT_STEP, Kernel, Setting, Stretch
from llmctl.data.clean.kernel import REASON, VALUE, split_by_verdict, with_text, with_verdicts
from llmctl.data.clean.pii import Pii
from llmctl.data.funnel import REJECTED_PREFIX, Funnel
from llmctl.data.parts import Report
from llmctl.data.table_writer import TableWriter
from llmctl.data.tables import Part, conform, documents_schema, read_part, text_bytes


@dataclass(frozen=True)
class Task:
    """One part in one pass.

    Attributes:
        part: what to read: of the input, or of the pass before.
        setting: how to clean it.
        stretches: what this pass does.
        extra: extra columns of the input, which stay.
        last: whether what is written is the artifact.
    """

    part: Part
    setting: Setting
    stretches: tuple[Stretch, ...]
    extra: tuple[str, ...] = ()
    last: bool = True


class Cleaner:
    """Applies kernels to batches; a document leaves with the first reason that one gives it.

    Attributes:
        funnel: what was dropped.
        counts: documents and bytes, and what kernels count.
    """

    def __init__(self, kernels: Sequence[tuple[int, Kernel]], redact: Pii | None = None) -> None:
        self.kernels = kernels
        self.redact = redact
        self.funnel = Funnel()
        self.counts: Counter[str] = Counter()

    def __call__(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[pa.RecordBatch]]:
        """(documents that stay; dropped ones with reason and value, a batch for each kernel that drops some)."""
        rejected: list[pa.RecordBatch] = []
        self.counts.update({"in": batch.num_rows, "bytes_in": text_bytes(batch)})
        batch = with_verdicts(batch)
        for step, kernel in self.kernels:
            rows = batch.num_rows
            batch = kernel(batch)
            if step == SEGMENT_STEP:
                self.counts["added"] += batch.num_rows - rows
            if batch.column("reason").null_count < batch.num_rows:
                batch, dropped = split_by_verdict(batch)
                batch = with_verdicts(batch)
                if self.redact is not None:  # what is kept to look at holds no more than what stays
                    dropped = with_text(
                        dropped, [self.redact.redact(text) for text in dropped.column("text").to_pylist()]
                    )
                self.funnel.add(step, dropped)
                self.counts.update(f"dropped.{reason}" for reason in dropped.column("reason").to_pylist())
                rejected.append(dropped)
        kept, _ = split_by_verdict(batch)
        self.counts.update({"kept": kept.num_rows, "bytes": text_bytes(kept)})
        return kept, rejected

    def figures(self) -> dict[str, Any]:
        """Counts and funnel, for the report of a part."""
        counts = self.counts.copy()
        for _, kernel in self.kernels:
            counts.update(getattr(kernel, "counts", {}))
        return {"counts": counts, "funnel": self.funnel.to_json()}


def clean_part(task: Task, directory: Path) -> Report:
    """Clean one part into `part-00000.parquet`; what was dropped goes into `rejected-….parquet` on request."""
    setting, config = task.setting, task.setting.config
    schema = documents_schema([*task.extra, *setting.extra()])
    redact = Pii(config.pii) if config.pii.action in {"redact", "drop"} else None
    cleaner = Cleaner([step for stretch in task.stretches for step in setting.kernels(stretch)], redact)
    lines = LineCounts(config.boilerplate) if config.boilerplate.enabled and "extract" in task.stretches else None
    rejected = REJECTED_PREFIX if task.last else f"{REJECTED_PREFIX}-{task.stretches[0]}"
    come = documents_schema(task.extra) if "extract" in task.stretches else schema
    with (
        TableWriter(directory, schema, part_bytes=None) as writer,
        TableWriter(directory, pa.schema([*schema, REASON, VALUE]), part_bytes=None, prefix=rejected) as rejects,
    ):
        for batch in read_part(task.part):
            kept, gone = cleaner(conform(batch, come))
            writer.write(kept)
            if lines is not None:
                lines.add(kept)
            if config.keep_rejected:
                for dropped in gone:
                    rejects.write(dropped)
        files = writer.close() | (rejects.close() if config.keep_rejected else {})
    if lines is not None:
        lines.write(directory)
    return Report(files, {**cleaner.figures(), "rows_digest": writer.digest.hexdigest()})


def scores_of(paths: Sequence[Path]) -> pa.ChunkedArray:
    """The column `quality` of parts: 8 bytes a document."""
    return pa.chunked_array(
        [chunk for path in paths for chunk in pq.read_table(path, columns=["quality"])["quality"].chunks], pa.float64()
    )
