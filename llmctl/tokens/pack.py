"""The `pack` stage: token shards to rows of fixed length (layout: `llmctl.tokens.rows`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmctl.config.errors import InputError, IntegrityError
from llmctl.config.tokens import PackConfig
from llmctl.data.split import position
from llmctl.data.tables import read_parquet
from llmctl.pipeline.job import FileFacts, Job, Product
from llmctl.store.artifact import Artifact
from llmctl.store.files import explained, publish, publish_bytes
from llmctl.tokens.fit import Ints, Layout, fit
from llmctl.tokens.rows import SCHEMA, SPLITS, mapped

CHUNK_TOKENS = 4 << 20  # written at a time
TABLE_ROWS = 1 << 16
COLUMNS = ["id", "source", "tokens", "bytes"]


@dataclass(frozen=True)
class Corpus:
    """Where every document's tokens are. Arrays have one element per document, in the order of the shards.

    Attributes:
        shards: the token files, mapped.
        shard: int32, which of them.
        offset: int64, of the first token within the shard.
        tokens: int64, length.
        heldout: bool.
    """

    shards: list[NDArray[Any]]
    shard: NDArray[np.int32]
    offset: Ints
    tokens: Ints
    heldout: NDArray[np.bool_]

    def documents(self, split: str) -> Ints:
        """Indices of the documents of a split."""
        return np.flatnonzero(self.heldout == (split == "heldout"))


def run(job: Job[PackConfig]) -> Product:
    """Split documents into train and held-out, fit each split into rows, write them."""
    config, artifact = job.config, job.artifact()
    corpus = _read(artifact, config.heldout_fraction)
    if config.heldout_fraction and not corpus.heldout.any():
        job.progress.note("no document is held out: there is only one, and training needs it")
    if corpus.heldout.all():
        raise InputError("every document is held out, none is left to train on", hint="use a smaller --heldout")
    semantic = artifact.manifest.semantic
    layouts: dict[str, Layout] = {}
    files: dict[str, FileFacts] = {}
    with explained(str(job.out)):
        for split in SPLITS:
            documents = corpus.documents(split)
            layout = layouts[split] = fit(corpus.tokens[documents], config.seq_len)
            _write_rows(job, corpus, documents, layout, split)
            _write_index(job, layout, split)
            tokens = int(layout.length.sum())
            files[f"{split}.bin"] = FileFacts(rows=layout.rows, tokens=tokens, split=split)
            files[f"{split}.documents.parquet"] = FileFacts(rows=documents.size, split=split)
            for name in ("rows", "slices"):
                files[f"{split}.{name}.bin"] = FileFacts(split=split)
        _write_documents(job, artifact, corpus)
    kept = {name: semantic[name] for name in ("dtype", "vocab_size", "bos_id", "eos_id", "pad_id", "tokenizer")}
    by_split = {
        "rows": {split: layout.rows for split, layout in layouts.items()},
        "targets": {split: int((layout.length - 1).sum()) for split, layout in layouts.items()},
    }
    facts = {**kept, "seq_len": config.seq_len, "heldout_fraction": config.heldout_fraction, **by_split}
    totals = _totals(corpus, layouts, config.seq_len)
    job.log(totals)
    return Product(SCHEMA, facts, totals, files)


def _totals(corpus: Corpus, layouts: dict[str, Layout], seq_len: int) -> dict[str, int | float | str]:
    rows = sum(layout.rows for layout in layouts.values())
    tokens = int(corpus.tokens.sum())
    cut = [np.count_nonzero(np.bincount(layout.document) > 1) for layout in layouts.values()]
    totals: dict[str, int | float | str] = {
        "documents": corpus.tokens.size,
        "documents_cut": int(sum(cut)),
        "tokens": tokens,
        "rows": rows,
        "padding": round(1.0 - tokens / (rows * seq_len), 6),
    }
    for split, layout in layouts.items():
        totals[f"{split}.documents"] = int(corpus.documents(split).size)
        totals[f"{split}.rows"] = layout.rows
        totals[f"{split}.tokens"] = int(layout.length.sum())
        totals[f"{split}.padding"] = round(layout.padding(seq_len), 6)
    return totals


def _read(artifact: Artifact, heldout_fraction: float) -> Corpus:
    """Map the shards, read the places of the documents and decide which are held out.

    That is the house rule, `position(id) < heldout_fraction`, with one exception: where it holds out none of two
    or more documents, the one of the lowest position is held out, which is the first that a larger fraction
    would. So a tiny corpus has a held-out loss too. Other stages do not know of that document: they go by the rule.
    """
    tables = artifact.files(suffix=".parquet")
    dtype = np.dtype(artifact.manifest.semantic["dtype"])
    shards, parts, positions = [], [], []
    for number, path in enumerate(tables):
        size = 0
        for batch in read_parquet(path, ["id", "offset", "tokens"], TABLE_ROWS):
            names = batch.column("id").to_pylist()
            positions.append(np.fromiter(map(position, names), np.float64, len(names)))
            offset, tokens = (batch.column(name).to_numpy().astype(np.int64) for name in ("offset", "tokens"))
            parts.append((np.full(len(names), number, dtype=np.int32), offset, tokens))
            size += int(tokens.sum())
        binary = path.with_name(path.name.replace("documents-", "tokens-").replace(".parquet", ".bin"))
        shards.append(mapped(binary, dtype, size * dtype.itemsize))
    if not sum(part[2].size for part in parts):
        raise InputError(f"{artifact.ref} holds no documents", hint=f"see llmctl show {artifact.ref}")
    shard, offset, tokens = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    where = np.concatenate(positions)
    held = where < heldout_fraction
    if heldout_fraction and not held.any() and held.size > 1:
        held[where.argmin()] = True
    return Corpus(shards, shard, offset, tokens, held)


def _write_rows(job: Job[PackConfig], corpus: Corpus, documents: Ints, layout: Layout, split: str) -> None:
    """Write `<split>.bin`, a chunk of rows at a time."""
    seq_len, semantic = job.config.seq_len, job.artifact().manifest.semantic
    step = max(1, CHUNK_TOKENS // seq_len)
    with publish(job.out / f"{split}.bin") as handle:
        for start in range(0, layout.rows, step):
            stop = min(start + step, layout.rows)
            rows = np.full((stop - start, seq_len), semantic["pad_id"], dtype=semantic["dtype"])
            _copy_slices(rows.reshape(-1), corpus, documents, layout, range(start, stop), seq_len)
            handle.write(rows.tobytes())
            job.progress.update(stop, layout.rows, f"{split} rows")


def _copy_slices(out: NDArray[Any], corpus: Corpus, documents: Ints, layout: Layout, rows: range, seq_len: int) -> None:
    """Copy the tokens of `rows` to `out` (flat, [len(rows) * seq_len]), one gather per shard."""
    first, last = int(layout.first[rows.start]), int(layout.first[rows.stop])
    length = layout.length[first:last]
    row = np.repeat(np.arange(len(rows)), np.diff(layout.first[rows.start : rows.stop + 1]))
    ends = np.cumsum(length)
    row_start = (ends - length)[layout.first[rows.start : rows.stop] - first]  # tokens before each row
    target = row * seq_len + (ends - length - row_start[row])
    document = documents[layout.document[first:last]]
    source = corpus.offset[document] + layout.start[first:last]
    shard = corpus.shard[document]
    for number in np.unique(shard).tolist():
        chosen = np.flatnonzero(shard == number)
        sizes = length[chosen]
        within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        out[np.repeat(target[chosen], sizes) + within] = corpus.shards[number][
            np.repeat(source[chosen], sizes) + within
        ]


def _write_index(job: Job[PackConfig], layout: Layout, split: str) -> None:
    slices = np.stack((layout.document, layout.start, layout.length), axis=1)
    publish_bytes(job.out / f"{split}.slices.bin", slices.astype(np.int32).tobytes())
    publish_bytes(job.out / f"{split}.rows.bin", layout.first.astype(np.int64).tobytes())


def _write_documents(job: Job[PackConfig], artifact: Artifact, corpus: Corpus) -> None:
    """Write `<split>.documents.parquet` of both splits in one pass: the split's documents by index."""
    at = 0
    with contextlib.ExitStack() as opened:
        handles = {split: opened.enter_context(publish(job.out / f"{split}.documents.parquet")) for split in SPLITS}
        writers: dict[str, pq.ParquetWriter] = {}
        for batch in _document_batches(artifact):
            held = corpus.heldout[at : at + batch.num_rows]
            at += batch.num_rows
            for split, handle in handles.items():
                if split not in writers:
                    writers[split] = pq.ParquetWriter(handle, batch.schema, compression="zstd")
                writers[split].write_batch(batch.filter(pa.array(held == (split == "heldout"))))
        if at != corpus.heldout.size:
            raise IntegrityError(f"{artifact.ref} changed while it was read", hint=f"run llmctl verify {artifact.ref}")
        for writer in writers.values():
            writer.close()


def _document_batches(artifact: Artifact) -> Iterator[pa.RecordBatch]:
    for path in artifact.files(suffix=".parquet"):
        yield from read_parquet(path, COLUMNS, TABLE_ROWS)
