"""The stage `clean`: HTML to text, Unicode and white space in order, documents that break a rule dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pyarrow as pa

from llmctl.config.data import CleanConfig
from llmctl.config.errors import InputError
from llmctl.data.clean.gopher_quality import GopherQuality
from llmctl.data.clean.gopher_repetition import GopherRepetition
from llmctl.data.clean.html import HtmlToText
from llmctl.data.clean.kernel import REASON, VALUE, NotEmpty, split_by_verdict, with_verdicts
from llmctl.data.clean.unicode import ComposeUnicode, RepairEncoding
from llmctl.data.clean.whitespace import NormalizeWhitespace
from llmctl.data.tables import DOCUMENTS, SCHEMA_NAMES, TableWriter, conform, read_batches, text_bytes
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


def run(job: Job[CleanConfig]) -> Product:
    """Clean every document into `part-*.parquet`, and the dropped ones, on request, into `rejected-*.parquet`.

    Every document is counted: in = kept + the sum of all `dropped.<reason>`.
    """
    chosen = kernels(job.config)
    counts: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    with TableWriter(job.out, DOCUMENTS) as writer, TableWriter(job.out, REJECTED, prefix="rejected") as rejects:
        for batch in read_batches(job.inputs["input"]):
            kept, rejected = clean(conform(batch, DOCUMENTS), chosen)
            writer.write(kept)
            if job.config.keep_rejected:
                rejects.write(rejected)
            dropped.update(rejected.column("reason").to_pylist())
            counts.update({"in": batch.num_rows, "kept": kept.num_rows})
            counts.update({"bytes_in": text_bytes(batch), "bytes": text_bytes(kept)})
            job.progress.update(counts["in"], None, "documents", kept=counts["kept"])
        if not counts["kept"]:
            raise InputError(f"clean kept none of {counts['in']} documents", hint=_why(dropped))
        files = writer.close() | (rejects.close() if job.config.keep_rejected else {})
    totals: dict[str, int | float | str] = {"documents": counts["kept"], **counts}
    totals |= {f"dropped.{reason}": count for reason, count in sorted(dropped.items())}
    totals["rows_digest"] = writer.digest.hexdigest()
    job.log({"stage": "clean", **totals})
    return Product(SCHEMA_NAMES["documents"], totals=totals, files=files)


def _why(dropped: Counter[str]) -> str:
    if not dropped:
        return "the input is empty"
    reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.most_common(3))
    return f"dropped: {reasons}; loosen these rules, for instance quality.min_words=10"
