"""The last pass: each part again without what goes; and the clusters and sources as tables."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmctl.data.dedup.decide import AGAINST_EXACT, AGAINST_NEAR, REASONS, STAYS, Decisions
from llmctl.data.dedup.index import PREFIX, Index, IndexWriter
from llmctl.data.dedup.kernel import normalise, shingles
from llmctl.data.dedup.keys import EXACT, Keys, band_names
from llmctl.data.dedup.units import Reading
from llmctl.data.parts import Report
from llmctl.data.table_writer import TableWriter
from llmctl.data.tables import conform, documents_schema, text_bytes
from llmctl.pipeline.job import FileFacts
from llmctl.store.files import explained, publish

CLUSTERS_FILE = "clusters.parquet"
CLUSTERS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # the document that went
        pa.field("representative", pa.string(), nullable=False),  # the one that stays for it
        pa.field("jaccard", pa.float64(), nullable=False),  # of their shingle sets
        pa.field("reason", pa.string(), nullable=False),  # exact | near | against_exact | against_near
    ],
)


@dataclass(frozen=True)
class WriteTask:
    """One part of which only some documents are to be written.

    Attributes:
        reading: how to read it.
        mask: file of bool [documents], those that stay.
        keys: the part's `keys.parquet`, for the index; None where none is wanted.
        bands: of the band keys.
        ngram_words: words per shingle.
        extra: the columns that are written beyond those of every document.
    """

    reading: Reading
    mask: Path
    keys: Path | None
    bands: int
    ngram_words: int
    extra: tuple[str, ...] = ()


def write_part(task: WriteTask, directory: Path) -> Report:
    """Write what stays of one part, and its index where it is wanted."""
    mask = np.load(task.mask)
    schema = documents_schema(task.extra)
    counts: Counter[str] = Counter()
    index_path = directory / f"{PREFIX}-00000.parquet"
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(TableWriter(directory, schema))
        index = stack.enter_context(IndexWriter(index_path, task.bands)) if task.keys else None
        for edited in task.reading.batches():
            first, rows = counts["in"], edited.batch.num_rows
            stays = mask[first : first + rows]
            kept = conform(edited.batch, schema).filter(pa.array(stays))
            writer.write(kept)
            if index is not None:
                _write_index(index, kept, np.flatnonzero(stays) + first, task)
            counts.update({"in": rows, "kept": kept.num_rows, "units_removed": edited.units_cut})
            counts.update({"bytes_in": edited.bytes_before, "bytes": text_bytes(kept)})
        files = writer.close()
    if index is not None:
        files[index_path.name] = FileFacts(rows=index.rows)
    figures = {"counts": counts, "documents": counts["kept"], "rows_digest": writer.digest.hexdigest()}
    return Report(files, figures)


def _write_index(index: IndexWriter, kept: pa.RecordBatch, rows: Any, task: WriteTask) -> None:
    """Add the documents of a batch that stay; their keys are those of the first pass."""
    table = pq.read_table(task.keys, columns=[*EXACT, *band_names(task.bands)], memory_map=True).take(pa.array(rows))
    sets = shingles(normalise(kept.column("text")), task.ngram_words).sets()
    index.write(kept.column("id"), [column.to_numpy() for column in table.columns], sets)


def write_clusters(path: Path, keys: Keys, decisions: Decisions, index: Index | None) -> FileFacts:
    """Write a row for each removed document that another one stays for, sorted by representative, then id."""
    gone = np.flatnonzero((decisions.reason != STAYS) & (decisions.survivor >= 0))
    ids = keys.table("id").column("id").combine_chunks()
    against = np.isin(decisions.reason[gone], (AGAINST_EXACT, AGAINST_NEAR))
    survivors = decisions.survivor[gone]
    own = ids.take(pa.array(survivors, mask=against))
    if index is not None and against.any():
        theirs = index.table("id").column("id").combine_chunks()
        own = own.fill_null("") if not against.all() else own
        other = theirs.take(pa.array(survivors, mask=~against))
        own = pa.compute.if_else(pa.array(against), other, own)
    reasons = pa.array(REASONS).take(pa.array(decisions.reason[gone]))
    table = pa.table([ids.take(pa.array(gone)), own, pa.array(decisions.jaccard[gone]), reasons], schema=CLUSTERS)
    table = table.sort_by([("representative", "ascending"), ("id", "ascending")])
    with explained(str(path)), publish(path) as handle:
        pq.write_table(table, handle, compression="zstd")
    return FileFacts(rows=len(table))


def sources_losing_most(keys: Keys, decisions: Decisions) -> list[tuple[str, int, int]]:
    """(source, documents that go, of all) where more than half go; those that lose most documents first."""
    table = keys.table("source").append_column("gone", pa.array((~decisions.stays).astype(np.int64)))
    counted = table.group_by("source").aggregate([("gone", "sum"), ("gone", "count")]).to_pylist()
    losing = [(row["source"], row["gone_sum"], row["gone_count"]) for row in counted]
    losing = [row for row in losing if row[1] * 2 > row[2]]
    return sorted(losing, key=lambda row: (-row[1], row[0]))
