"""The stage `dedup`: exact, then near duplicates; one document of every cluster stays."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from llmctl.config.dedup import DedupConfig
from llmctl.config.errors import InputError
from llmctl.data.dedup.clusters import Verifier
from llmctl.data.dedup.minhash import Signer, bands_and_rows, buckets
from llmctl.data.dedup.shingles import Hashes, Shingler
from llmctl.data.table_writer import TableWriter
from llmctl.data.tables import DOCUMENTS, SCHEMA_NAMES, conform, read_batches, text_bytes
from llmctl.pipeline.job import FileFacts, Job, Product
from llmctl.store.artifact import Input
from llmctl.store.files import explained, publish

WHITE_SPACE = re.compile(r"\s+")
CLUSTERS_FILE = "clusters.parquet"
CLUSTERS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # the document that went
        pa.field("representative", pa.string(), nullable=False),  # the one that stays for it
        pa.field("jaccard", pa.float64(), nullable=False),  # of their shingle sets
        pa.field("reason", pa.string(), nullable=False),  # exact | near
    ],
)


@dataclass
class Corpus:
    """What is kept of every document between the two passes; rows are numbered in reading order.

    Attributes:
        ids, lengths: by row; lengths in characters.
        survivor: by row, the row that stays for it (itself where it stays).
        jaccard, reason: by removed row.
    """

    ids: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    survivor: list[int] = field(default_factory=list)
    jaccard: dict[int, float] = field(default_factory=dict)
    reason: dict[int, str] = field(default_factory=dict)

    def rank(self, row: int) -> tuple[int, str]:
        """Sort key: the longest document first, then the smallest id."""
        return -self.lengths[row], self.ids[row]

    def remove(self, row: int, survivor: int, similarity: float, reason: str) -> None:
        """Note that `row` goes and `survivor` stays for it."""
        self.survivor[row] = survivor
        self.jaccard[row] = similarity
        self.reason[row] = reason


def exact_key(text: str) -> int:
    """128-bit hash of the text without regard to letter case and white space."""
    return xxhash.xxh3_128_intdigest(WHITE_SPACE.sub(" ", text.casefold()).strip().encode())


def run(job: Job[DedupConfig]) -> Product:
    """Two passes over the input: find what goes, then write what stays, in the input's order.

    Memory: about 8 bytes per distinct word n-gram and 4 per permutation and document. The result does not
    depend on the order of the input, except for the order of the output.
    """
    config, given = job.config, job.inputs["input"]
    corpus, sets = Corpus(), list[Hashes]()
    shingler = Shingler(config.ngram_words)
    owner: dict[int, int] = {}
    for batch in read_batches(given, ["id", "text"]):
        for document_id, text in zip(batch.column("id").to_pylist(), batch.column("text").to_pylist(), strict=True):
            row = len(corpus.ids)
            corpus.ids.append(document_id)
            corpus.lengths.append(len(text))
            corpus.survivor.append(row)
            first = owner.setdefault(exact_key(text), row) if config.exact else row
            # An exact copy needs no shingles of its own: its survivor's are the same.
            sets.append(sets[first] if first != row else shingler(text) if config.near else _NO_SHINGLES)
            if first != row:
                corpus.remove(row, first, 1.0, "exact")
        job.progress.update(len(corpus.ids), None, "documents hashed")
    if not corpus.ids:
        raise InputError(f"{given.ref} holds no document", hint="nothing to deduplicate")
    _settle_exact(corpus)
    compared = _remove_near(job, corpus, sets) if config.near else 0
    return _publish(job, corpus, compared)


_NO_SHINGLES = np.empty(0, dtype=np.uint64)


def _settle_exact(corpus: Corpus) -> None:
    """Of each group of equal documents, let the best stay instead of the first."""
    groups: dict[int, list[int]] = {}
    for row, first in enumerate(corpus.survivor):
        if first != row:
            groups.setdefault(first, [first]).append(row)
    for first, rows in groups.items():
        best = min(rows, key=corpus.rank)
        corpus.survivor[first] = first
        for row in rows:
            if row == best:
                corpus.survivor[row] = row
                corpus.jaccard.pop(row, None)
                corpus.reason.pop(row, None)
            else:
                corpus.remove(row, best, 1.0, "exact")


def _remove_near(job: Job[DedupConfig], corpus: Corpus, sets: list[Hashes]) -> int:
    """Mark near duplicates among the exact survivors; the number of pairs compared."""
    config = job.config
    rows = [row for row, survivor in enumerate(corpus.survivor) if survivor == row and len(sets[row])]
    rows.sort(key=corpus.rank)  # so that nothing depends on the order of the input
    if len(rows) < 2:
        return 0
    chosen = [sets[row] for row in rows]
    bands, band_rows = bands_and_rows(config.threshold, config.permutations)
    job.progress.note(f"MinHash: {config.permutations} permutations, {bands} bands of {band_rows} rows")
    signatures = Signer(config.permutations, config.seed)(chosen)
    verifier = Verifier(chosen, config.threshold)
    verifier.add(buckets(signatures, bands, band_rows))
    for removal in verifier.removals([corpus.rank(row) for row in rows]):
        corpus.remove(rows[removal.document], rows[removal.representative], removal.jaccard, "near")
    for row, survivor in enumerate(corpus.survivor):
        if survivor != row and corpus.survivor[survivor] != survivor:  # the copy of a document that went
            corpus.survivor[row] = corpus.survivor[survivor]
            corpus.jaccard[row] = corpus.jaccard[survivor]
    return verifier.compared


def _publish(job: Job[DedupConfig], corpus: Corpus, compared: int) -> Product:
    """Write the survivors and the table of clusters."""
    bytes_in = bytes_out = 0
    with TableWriter(job.out, DOCUMENTS) as writer:
        for batch, stays in _with_decisions(job.inputs["input"], corpus):
            kept = conform(batch, DOCUMENTS).filter(stays)
            writer.write(kept)
            bytes_in += text_bytes(batch)
            bytes_out += text_bytes(kept)
        files = writer.close()
    gone = [row for row, survivor in enumerate(corpus.survivor) if survivor != row]
    files[CLUSTERS_FILE] = _write_clusters(job, corpus, gone)
    reasons = [corpus.reason[row] for row in gone]
    totals: dict[str, int | float | str] = {
        "documents": len(corpus.ids) - len(gone),
        "in": len(corpus.ids),
        "kept": len(corpus.ids) - len(gone),
        "bytes_in": bytes_in,
        "bytes": bytes_out,
        "dropped.exact": reasons.count("exact"),
        "dropped.near": reasons.count("near"),
        "clusters": len({corpus.survivor[row] for row in gone}),
        "pairs_compared": compared,
        "rows_digest": writer.digest.hexdigest(),
    }
    job.log({"stage": "dedup", **totals})
    return Product(SCHEMA_NAMES["documents"], totals=totals, files=files)


def _with_decisions(given: Input, corpus: Corpus) -> Iterator[tuple[pa.RecordBatch, pa.BooleanArray]]:
    """Each batch again, with a mask of the rows that stay."""
    start = 0
    for batch in read_batches(given):
        rows = range(start, start + batch.num_rows)
        yield batch, pa.array([corpus.survivor[row] == row for row in rows], pa.bool_())
        start += batch.num_rows


def _write_clusters(job: Job[DedupConfig], corpus: Corpus, gone: list[int]) -> FileFacts:
    """`clusters.parquet`: every removed document, sorted by representative, then id."""
    rows = [
        {
            "id": corpus.ids[row],
            "representative": corpus.ids[corpus.survivor[row]],
            "jaccard": corpus.jaccard[row],
            "reason": corpus.reason[row],
        }
        for row in gone
    ]
    rows.sort(key=lambda row: (row["representative"], row["id"]))
    path = job.out / CLUSTERS_FILE
    with explained(str(path)), publish(path) as handle:
        pq.write_table(pa.Table.from_pylist(rows, schema=CLUSTERS), handle, compression="zstd")
    return FileFacts(rows=len(rows))
