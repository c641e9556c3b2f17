"""The `pack` stage: token shards to rows of fixed length (layout: `llmctl.tokens.rows`)."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmctl.config.errors import InputError, IntegrityError
from llmctl.config.tokens import PackConfig
from llmctl.pipeline.job import FileFacts, Job, Product
from llmctl.store.artifact import Artifact
from llmctl.store.files import explained, publish, publish_bytes
from llmctl.tokens.blend import SOURCES, check_weights, mixture_of, say_passes
from llmctl.tokens.corpus import COLUMNS, Corpus, document_batches, read_corpus
from llmctl.tokens.fit import Ints, Layout, fit, joined
from llmctl.tokens.infill import Infill, mark_ids
from llmctl.tokens.rows import SCHEMA, SPLITS
from llmctl.tokens.tokenizer import Tokenizer

CHUNK_TOKENS = 4 << 20  # written at a time


def run(job: Job[PackConfig]) -> Product:
    """Split documents into train and held-out, fit each split into rows, write them.

    Of several sources each has rows of its own, one source after the other.

    Raises:
        InputError: there is nothing to train on, or the sources do not go together.
        ConfigError: weights and sources do not fit together.
    """
    config, sources = job.config, _sources(job)
    check_weights(config, list(sources))
    corpus = read_corpus(sources, config.heldout_fraction)
    if config.heldout_fraction and not corpus.heldout.any():
        job.progress.note("no document is held out: there is only one, and training needs it")
    if corpus.heldout.all():
        raise InputError("every document is held out, none is left to train on", hint="use a smaller --heldout")
    first = next(iter(sources.values()))
    corpus, infilled = _infilled(job, corpus, first)
    layouts: dict[str, Layout] = {}
    parts: dict[str, list[Layout]] = {}
    files: dict[str, FileFacts] = {}
    with explained(str(job.out)):
        for split in SPLITS:
            documents = corpus.documents(split)
            parts[split], layouts[split] = _fit(corpus, documents, len(sources), config.seq_len)
            layout = layouts[split]
            _write_rows(job, corpus, documents, layout, split, first)
            _write_index(job, layout, split)
            tokens = int(layout.length.sum())
            files[f"{split}.bin"] = FileFacts(rows=layout.rows, tokens=tokens, split=split)
            files[f"{split}.documents.parquet"] = FileFacts(rows=documents.size, split=split)
            for name in ("rows", "slices"):
                files[f"{split}.{name}.bin"] = FileFacts(split=split)
        _write_documents(job, sources, corpus)
    semantic = first.manifest.semantic
    kept = {name: semantic[name] for name in ("dtype", "vocab_size", "bos_id", "eos_id", "pad_id", "tokenizer")}
    by_split = {
        "rows": {split: layout.rows for split, layout in layouts.items()},
        "targets": {split: int((layout.length - 1).sum()) for split, layout in layouts.items()},
    }
    facts = {**kept, "seq_len": config.seq_len, "heldout_fraction": config.heldout_fraction, **by_split, **infilled}
    totals = _totals(corpus, layouts, config.seq_len)
    if infilled:
        totals["fim.documents"] = infilled["fim"]["documents"]
    if len(sources) > 1:
        mixture = mixture_of(config, sources, parts["train"])
        facts |= {"sources": list(sources), "mixture": mixture.facts()}
        totals |= _source_totals(list(sources), parts["train"])
        say_passes(job, list(sources), mixture)
    job.log(totals)
    return Product(SCHEMA, facts, totals, files)


def _sources(job: Job[PackConfig]) -> dict[str, Artifact]:
    """The token shards to pack, by name; the one that is no mixture goes by the name of its artifact."""
    several = {name: job.artifact(f"{SOURCES}.{name}") for name in job.group(SOURCES)}
    if "input" in job.inputs and several:
        raise InputError("pack takes one input, or sources to mix, not both", hint="name every source: a=0.7 b=0.3")
    if not several:
        single = job.artifact()
        return {single.name: single}
    return several


def _infilled(job: Job[PackConfig], corpus: Corpus, like: Artifact) -> tuple[Corpus, dict[str, Any]]:
    """The corpus with a share of its documents rearranged, and what a reader must know of that."""
    config, semantic = job.config, like.manifest.semantic
    if not config.fim.rate:
        return corpus, {}
    tokenizer = Tokenizer.open(job.artifact("tokenizer").data) if "tokenizer" in job.inputs else None
    marks = mark_ids(config.fim, tokenizer, semantic["vocab_size"])
    infill = Infill(config.fim, marks, config.seq_len)
    job.work.mkdir(parents=True, exist_ok=True)
    with explained(str(job.work)):
        changed = infill.applied(corpus, job.work / "infill.bin")
    return changed, {"fim": {"marks": list(marks), "documents": int(infill.chosen(corpus).size)}}


def _fit(corpus: Corpus, documents: Ints, sources: int, seq_len: int) -> tuple[list[Layout], Layout]:
    """The layout of each source, and all of them one after the other."""
    owner = corpus.source[documents]
    of_source = [documents[owner == number] for number in range(sources)]
    layouts = [fit(corpus.tokens[some], seq_len) for some in of_source]
    return layouts, joined(layouts, [some.size for some in of_source])


def _source_totals(names: list[str], layouts: list[Layout]) -> dict[str, int | float | str]:
    """Training rows and tokens of each source."""
    totals: dict[str, int | float | str] = {}
    for name, layout in zip(names, layouts, strict=True):
        totals[f"train.rows.{name}"] = layout.rows
        totals[f"train.tokens.{name}"] = int(layout.length.sum())
    return totals


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


def _write_rows(
    job: Job[PackConfig], corpus: Corpus, documents: Ints, layout: Layout, split: str, like: Artifact
) -> None:
    """Write `<split>.bin`, a chunk of rows at a time, with the pad and the type of the tokens of `like`."""
    seq_len, semantic = job.config.seq_len, like.manifest.semantic
    step = max(1, CHUNK_TOKENS // seq_len)
    with publish(job.out / f"{split}.bin") as handle:
        for start in range(0, layout.rows, step):
            stop = min(start + step, layout.rows)
            rows = np.full((stop - start, seq_len), semantic["pad_id"], dtype=semantic["dtype"])
            _copy_slices(rows.reshape(-1), corpus, documents, layout, range(start, stop), seq_len)
            handle.write(rows.tobytes())
            job.progress.update(stop, layout.rows, f"{split} rows")


def _copy_slices(out: NDArray[Any], corpus: Corpus, documents: Ints, layout: Layout, rows: range, seq_len: int) -> None:
    """Copy the tokens of `rows` to `out` (flat, [len(rows) * seq_len])."""
    first, last = int(layout.first[rows.start]), int(layout.first[rows.stop])
    length = layout.length[first:last]
    row = np.repeat(np.arange(len(rows)), np.diff(layout.first[rows.start : rows.stop + 1]))
    begins = np.cumsum(length) - length
    row_start = begins[layout.first[rows.start : rows.stop] - first]  # tokens before each row
    place = row * seq_len + (begins - row_start[row])
    corpus.gather(documents[layout.document[first:last]], layout.start[first:last], length, out, place)


def _write_index(job: Job[PackConfig], layout: Layout, split: str) -> None:
    slices = np.stack((layout.document, layout.start, layout.length), axis=1)
    publish_bytes(job.out / f"{split}.slices.bin", slices.astype(np.int32).tobytes())
    publish_bytes(job.out / f"{split}.rows.bin", layout.first.astype(np.int64).tobytes())


def _write_documents(job: Job[PackConfig], sources: dict[str, Artifact], corpus: Corpus) -> None:
    """Write `<split>.documents.parquet` of both splits in one pass: the split's documents by index."""
    at = 0
    with contextlib.ExitStack() as opened:
        handles = {split: opened.enter_context(publish(job.out / f"{split}.documents.parquet")) for split in SPLITS}
        writers: dict[str, pq.ParquetWriter] = {}
        for listed in document_batches(sources):
            some = slice(at, at + listed.num_rows)
            at += listed.num_rows
            if at > corpus.tokens.size:
                break
            lengths = pa.array(corpus.tokens[some].astype(np.int32))  # of rearranged documents too
            batch = listed.set_column(COLUMNS.index("tokens"), listed.schema.field("tokens"), lengths)
            held = corpus.heldout[some]
            for split, handle in handles.items():
                if split not in writers:
                    writers[split] = pq.ParquetWriter(handle, batch.schema, compression="zstd")
                writers[split].write_batch(batch.filter(pa.array(held == (split == "heldout"))))
        if at != corpus.heldout.size:
            refs = " ".join(artifact.ref for artifact in sources.values())
            raise IntegrityError(f"{refs} changed while being read", hint=f"run llmctl verify {refs}")
        for writer in writers.values():
            writer.close()
