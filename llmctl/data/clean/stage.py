"""The stage `clean`: HTML to text, Unicode and white space in order, documents that break a rule dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from llmctl.config.clean import CleanConfig
from llmctl.config.errors import InputError
from llmctl.data.clean.gopher_quality import GopherQuality
from llmctl.data.clean.gopher_repetition import GopherRepetition
from llmctl.data.clean.html import HtmlToText
from llmctl.data.clean.kernel import REASON, VALUE, NotEmpty, split_by_verdict, with_verdicts
from llmctl.data.clean.unicode import ComposeUnicode, RepairEncoding
from llmctl.data.clean.whitespace import NormalizeWhitespace
from llmctl.data.parts import Report, gather, run_parts
from llmctl.data.table_writer import RowsDigest, TableWriter
from llmctl.data.tables import DOCUMENTS, SCHEMA_NAMES, Part, conform, parts_of, read_part, text_bytes
from llmctl.data.workers import open_workers
from llmctl.pipeline.job import Job, Product

Kernel = Callable[[pa.RecordBatch], pa.RecordBatch]

REJECTED = pa.schema([*DOCUMENTS, REASON, VALUE])


def kernels(config: CleanConfig) -> list[Kernel]:
    """The kernels that `config` asks for, in their order. Rules see the normalised text."""
    chosen: list[Kernel] = [HtmlToText(config.html, main_content=config.main_content)]
    if config.repair_unicode:
        chosen.append(RepairEncoding())
    chosen += [NormalizeWhitespace(), ComposeUnicode(), NotEmpty()]
    if config.quality.enabled:
        chosen.append(GopherQuality(config.quality))
    if config.repetition.enabled:
        chosen.append(GopherRepetition(config.repetition))
    return chosen


def clean(batch: pa.RecordBatch, chosen: list[Kernel]) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """(kept documents, dropped documents with `reason` and `value`) of one batch of documents."""
    batch = with_verdicts(batch)
    for kernel in chosen:
        batch = kernel(batch)
    return split_by_verdict(batch)


@dataclass(frozen=True)
class Task:
    """One part of the input, and how to clean it."""

    part: Part
    config: CleanConfig


def clean_part(task: Task, directory: Path) -> Report:
    """Clean one part into `part-00000.parquet` and, on request, what was dropped into `rejected-00000.parquet`."""
    chosen = kernels(task.config)
    counts: Counter[str] = Counter()
    with (
        TableWriter(directory, DOCUMENTS, part_bytes=None) as writer,
        TableWriter(directory, REJECTED, part_bytes=None, prefix="rejected") as rejects,
    ):
        for batch in read_part(task.part):
            kept, rejected = clean(conform(batch, DOCUMENTS), chosen)
            writer.write(kept)
            if task.config.keep_rejected:
                rejects.write(rejected)
            counts.update(f"dropped.{reason}" for reason in rejected.column("reason").to_pylist())
            counts.update({"in": batch.num_rows, "kept": kept.num_rows})
            counts.update({"bytes_in": text_bytes(batch), "bytes": text_bytes(kept)})
        files = writer.close() | (rejects.close() if task.config.keep_rejected else {})
    return Report(files, {"counts": counts, "rows_digest": writer.digest.hexdigest()})


def run(job: Job[CleanConfig]) -> Product:
    """Clean every part of the input, part by part.

    Every document is counted: in = kept + the sum of all `dropped.<reason>`.
    """
    tasks = [Task(part, job.config) for part in parts_of(job.inputs["input"])]
    counts: Counter[str] = Counter()
    digest = RowsDigest()
    reports: list[Report] = []
    for report in run_parts(job, open_workers(job.config), clean_part, tasks):
        reports.append(report)
        counts.update(report.figures["counts"])
        digest.merge(report.figures["rows_digest"], report.figures["counts"]["kept"])
        job.progress.update(counts["in"], None, "documents", kept=counts["kept"])
    if not counts["kept"]:
        raise InputError(f"clean kept none of {counts['in']} documents", hint=_why(counts))
    files = gather(job, reports)
    dropped = sorted(key for key in counts if key.startswith("dropped."))
    totals: dict[str, int | float | str] = {"documents": counts["kept"]}
    totals |= {key: counts[key] for key in ("in", "kept", "bytes_in", "bytes", *dropped)}
    totals["rows_digest"] = digest.hexdigest()
    job.log({"stage": "clean", **totals})
    return Product(SCHEMA_NAMES["documents"], totals=totals, files=files)


def _why(counts: Counter[str]) -> str:
    dropped = Counter({key: count for key, count in counts.items() if key.startswith("dropped.")})
    if not dropped:
        return "the input is empty"
    reasons = ", ".join(f"{key.removeprefix('dropped.')} {count}" for key, count in dropped.most_common(3))
    return f"dropped: {reasons}; loosen these rules, for instance quality.min_words=10"
