"""The stage `decontaminate`: documents that share word n-grams with an evaluation set go, or the shared spans do."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmctl.config.decontaminate import DecontaminateConfig
from llmctl.config.errors import InputError
from llmctl.data.decontaminate.items import Item, Table, read_items, tables
from llmctl.data.decontaminate.overlap import Span, find, without
from llmctl.data.dedup.kernel import library
from llmctl.data.parts import Report, gather, run_parts
from llmctl.data.table_writer import RowsDigest, TableWriter
from llmctl.data.tables import (
    SCHEMA_NAMES,
    Part,
    conform,
    documents_schema,
    extra_columns,
    parts_of,
    read_part,
    text_bytes,
)
from llmctl.data.workers import open_workers
from llmctl.pipeline.job import FileFacts, Job, Product
from llmctl.store.files import explained, publish

HITS_FILE = "hits.parquet"
HITS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # the document
        pa.field("item", pa.string(), nullable=False),  # the evaluation item: its id, or its file and line
        pa.field("ngrams", pa.int64(), nullable=False),  # of the item that begin in the span
        pa.field("start", pa.int64(), nullable=False),  # of the span in the document's text, in characters
        pa.field("end", pa.int64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),  # the span, or its beginning
    ],
)
EXCERPT_CHARACTERS = 200
NAMES_TOLD = 5


@dataclass(frozen=True)
class Task:
    """One part of the documents.

    Attributes:
        part: what to read.
        lookup: file that holds the tables and the names of the items.
        config: of the stage.
        extra: the columns that are written beyond those of every document.
    """

    part: Part
    lookup: Path
    config: DecontaminateConfig
    extra: tuple[str, ...]


def decontaminate_part(task: Task, directory: Path) -> Report:
    """Write one part without its contamination, and what was found in it."""
    with open(task.lookup, "rb") as handle:
        names, looked_for = pickle.load(handle)  # noqa: S301 - this run wrote it
    counts: Counter[str] = Counter()
    found: set[int] = set()
    rows: list[dict[str, object]] = []
    schema = documents_schema(task.extra)
    with TableWriter(directory, schema) as writer:
        for raw in read_part(task.part):
            batch = conform(raw, schema)
            spans = find(batch.column("text"), looked_for, task.config.min_ngrams)
            kept, reasons = _cleared(batch, spans, task.config)
            writer.write(kept)
            rows += [_hit(batch, row, span, names) for row, own in sorted(spans.items()) for span in own]
            found |= {span.item for own in spans.values() for span in own}
            counts.update({"in": batch.num_rows, "kept": kept.num_rows, "contaminated": len(spans)})
            counts.update({"bytes_in": text_bytes(batch), "bytes": text_bytes(kept)} | reasons)
        files = writer.close()
    with publish(directory / HITS_FILE) as handle:
        pq.write_table(pa.Table.from_pylist(rows, schema=HITS), handle, compression="zstd")
    return Report(files, {"counts": counts, "items": sorted(found), "rows_digest": writer.digest.hexdigest()})


def _cleared(
    batch: pa.RecordBatch, spans: dict[int, list[Span]], config: DecontaminateConfig
) -> tuple[pa.RecordBatch, dict[str, int]]:
    """(what stays of a batch, why the others go)."""
    stays = np.ones(batch.num_rows, dtype=bool)
    if config.action == "drop":
        stays[list(spans)] = False
        return batch.filter(pa.array(stays)), {"dropped.contaminated": len(spans)}
    if not spans:
        return batch, {"dropped.empty": 0}
    texts = batch.column("text").to_pylist()
    for row, own in spans.items():
        texts[row] = without(texts[row], own)
        stays[row] = bool(texts[row].strip())
    place = batch.schema.get_field_index("text")
    edited = batch.set_column(place, batch.schema.field(place), pa.array(texts, pa.string()))
    return edited.filter(pa.array(stays)), {"dropped.empty": int((~stays).sum())}


def _hit(batch: pa.RecordBatch, row: int, span: Span, names: Sequence[str]) -> dict[str, object]:
    text = batch.column("text")[row].as_py()[span.start : span.end]
    return {
        "id": batch.column("id")[row].as_py(), "item": names[span.item], "ngrams": span.ngrams,
        "start": span.start, "end": span.end, "text": text[:EXCERPT_CHARACTERS],
    }  # fmt: skip


def run(job: Job[DecontaminateConfig]) -> Product:
    """Look for the evaluation set's n-grams in every part.

    Every document is counted: in = kept + the sum of all `dropped.<reason>`.
    """
    library()
    items, looked_for = _looked_for(job)
    lookup = job.work / "items.pickle"
    with explained(str(job.work)):
        job.work.mkdir(parents=True, exist_ok=True)
        with publish(lookup) as handle:
            pickle.dump(([item.name for item in items], looked_for), handle)
    given = job.inputs["input"]
    extra = tuple(extra_columns(given))
    tasks = [Task(part, lookup, job.config, extra) for part in parts_of(given)]
    counts: Counter[str] = Counter()
    digest = RowsDigest()
    found: set[int] = set()
    reports: list[Report] = []
    for report in run_parts(job, open_workers(job.config), decontaminate_part, tasks):
        reports.append(report)
        counts.update(report.figures["counts"])
        found.update(report.figures["items"])
        digest.merge(report.figures["rows_digest"], report.figures["counts"]["kept"])
        job.progress.update(counts["in"], None, "documents", contaminated=counts["contaminated"])
    if not counts["kept"]:
        raise InputError(f"decontaminate kept none of {counts['in']} documents", hint="is this the evaluation set?")
    files = gather(job, reports)
    files[HITS_FILE] = _write_hits(job, len(tasks))
    totals: dict[str, int | float | str] = {"documents": counts["kept"]}
    dropped = sorted(key for key in counts if key.startswith("dropped."))
    totals |= {key: counts[key] for key in ("in", "kept", "bytes_in", "bytes", "contaminated", *dropped)}
    totals |= {"items": len(items), "items_found": len(found), "hits": files[HITS_FILE].rows or 0}
    totals["rows_digest"] = digest.hexdigest()
    if found:
        told = ", ".join(items[number].name for number in sorted(found)[:NAMES_TOLD])
        job.progress.note(f"{len(found)} of {len(items)} evaluation items stand in the documents: {told} …")
    job.log({"stage": "decontaminate", **totals})
    return Product(SCHEMA_NAMES["documents"], totals=totals, files=files)


def _looked_for(job: Job[DecontaminateConfig]) -> tuple[list[Item], list[Table]]:
    """The evaluation items and the tables of their n-grams.

    Raises:
        InputError: there is nothing to look for.
    """
    config, given = job.config, job.inputs["against"]
    items = list(read_items(given, config.fields))
    if not items:
        raise InputError(f"{given.ref} holds no evaluation item", hint="an empty set would find nothing contaminated")
    looked_for, too_short = tables(items, config.ngram_words, config.min_words)
    if too_short == len(items):
        raise InputError(
            f"no text of {given.ref} has {config.min_words} words", hint="lower min_words, or name other fields=[…]"
        )
    if too_short:
        job.progress.note(
            f"{too_short} of {len(items)} evaluation items are not looked for: no text of {config.min_words} words"
        )
    return items, looked_for


def _write_hits(job: Job[DecontaminateConfig], parts: int) -> FileFacts:
    """All parts' hits in one table, in the order of the documents."""
    paths = [job.work / "parts" / f"{number:05d}" / HITS_FILE for number in range(parts)]
    path = job.out / HITS_FILE
    table = pa.concat_tables([pq.read_table(one) for one in paths]).cast(HITS)
    with explained(str(path)), publish(path) as handle:
        pq.write_table(table, handle, compression="zstd")
    return FileFacts(rows=len(table))
