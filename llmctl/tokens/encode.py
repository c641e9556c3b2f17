"""The `tokenize` stage: documents to shards of token ids.

Each document is written as BOS, its ids, EOS. A shard is `tokens-00000.bin` (documents back to back) with the
table `documents-00000.parquet` (where each begins).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmctl.config.devices import cores
from llmctl.config.errors import InputError
from llmctl.config.tokens import TokenizeConfig
from llmctl.data.tables import read_batches
from llmctl.pipeline.job import FileFacts, Job, Product
from llmctl.store.artifact import Artifact
from llmctl.store.files import explained, publish
from llmctl.tokens.tokenizer import Tokenizer

SCHEMA = "llmctl.tokens/1"
DOCUMENTS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),  # of the BOS, in tokens from the start of the shard
        pa.field("tokens", pa.int32(), nullable=False),  # BOS and EOS included
        pa.field("bytes", pa.int32(), nullable=False),  # of UTF-8 text
    ]
)


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds every id: uint16 up to 65,536 ids, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def run(job: Job[TokenizeConfig]) -> Product:
    """Encode `input` with the artifact `tokenizer`, or with one trained on the input first."""
    documents = job.inputs["input"]
    artifact = job.artifact("tokenizer") if "tokenizer" in job.inputs else _trained(job)
    tokenizer = Tokenizer.open(artifact.data)
    dtype = id_dtype(tokenizer.vocab_size)
    threads = job.config.workers or cores()
    with explained(str(job.out)), ShardWriter(job.out, dtype, job.config.shard_tokens) as shards:
        for batch in read_batches(documents, columns=["id", "source", "text"]):
            encoded = tokenizer.encode_batch(batch.column("text").to_pylist(), threads=threads)
            shards.write(batch, encoded, tokenizer)
            job.progress.update(shards.documents, None, "documents", tokens=shards.tokens, bytes=shards.bytes)
    if not shards.documents:
        raise InputError(f"{documents.ref} holds no documents", hint="check what was collected or kept")
    text_tokens = shards.tokens - 2 * shards.documents
    totals: dict[str, int | float | str] = {
        "documents": shards.documents,
        "tokens": shards.tokens,
        "bytes": shards.bytes,
        "bytes_per_token": round(shards.bytes / max(1, text_tokens), 4),  # BOS and EOS left out
    }
    job.log(totals)
    return Product(
        schema=SCHEMA,
        semantic={
            "dtype": dtype.name,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
            "pad_id": tokenizer.pad_id,
            "tokenizer": artifact.digest,
        },
        totals=totals,
        files=shards.facts,
    )


def _trained(job: Job[TokenizeConfig]) -> Artifact:
    job.progress.note(f"no tokenizer given: training one of {job.config.train.vocab_size} ids on this input")
    return job.nested("tokenizer", job.config.train, {"input": job.inputs["input"]})


class ShardWriter:
    """Appends documents to shards; a shard is closed by the document that brings it to `shard_tokens`.

    Attributes:
        documents, tokens, bytes: written so far.
        facts: of the finished files, by name.
    """

    def __init__(self, directory: Path, dtype: np.dtype[Any], shard_tokens: int) -> None:
        self.directory = directory
        self.dtype = dtype
        self.shard_tokens = shard_tokens
        self.documents = self.tokens = self.bytes = 0
        self.facts: dict[str, FileFacts] = {}
        self._shard = 0
        self._open: contextlib.ExitStack | None = None
        self._handle: IO[bytes] | None = None
        self._length = 0  # tokens in the open shard
        self._tables: list[pa.RecordBatch] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._close()
        elif self._open is not None:
            self._open.__exit__(kind, error, trace)

    def write(self, batch: pa.RecordBatch, encoded: list[NDArray[np.int32]], tokenizer: Tokenizer) -> None:
        """Append the documents of `batch` (columns id, source, and text or its bytes), whose ids are `encoded`."""
        known = "bytes" in batch.schema.names
        bytes_of = batch.column("bytes") if known else pc.cast(pc.binary_length(batch.column("text")), pa.int32())
        lengths = np.array([ids.size + 2 for ids in encoded], dtype=np.int64)
        start = 0
        for end in self._shard_ends(lengths):
            ids = _framed(encoded[start:end], tokenizer).astype(self.dtype)
            offsets = self._length + np.cumsum(lengths[start:end]) - lengths[start:end]
            part = slice(start, end)
            columns = [
                batch.column("id")[part],
                batch.column("source")[part],
                pa.array(offsets),
                pa.array(lengths[part].astype(np.int32)),
                bytes_of[part],
            ]
            self._append(ids, pa.RecordBatch.from_arrays(columns, schema=DOCUMENTS))
            start = end

    def _shard_ends(self, lengths: NDArray[np.int64]) -> Iterator[int]:
        """Ends of the stretches of a batch that go to one shard each."""
        ends = np.cumsum(lengths)
        start = 0
        while start < lengths.size:
            before = int(ends[start - 1]) if start else 0
            wanted = self.shard_tokens - self._length
            start = min(lengths.size, int(np.searchsorted(ends, before + wanted)) + 1)
            yield start

    def _append(self, ids: NDArray[Any], table: pa.RecordBatch) -> None:
        if self._handle is None:
            self._open = contextlib.ExitStack()
            self._handle = self._open.enter_context(publish(self.directory / f"tokens-{self._shard:05d}.bin"))
        self._handle.write(ids.tobytes())
        self._tables.append(table)
        self._length += ids.size
        self.tokens += ids.size
        self.documents += table.num_rows
        self.bytes += pc.sum(table.column("bytes")).as_py()
        if self._length >= self.shard_tokens:
            self._close()

    def _close(self) -> None:
        """Publish the open shard, if there is one, and then its table."""
        if self._open is None:
            return
        self._open.close()
        table = pa.Table.from_batches(self._tables, schema=DOCUMENTS)
        name = f"documents-{self._shard:05d}.parquet"
        with publish(self.directory / name) as handle:
            pq.write_table(table, handle, compression="zstd")
        self.facts[f"tokens-{self._shard:05d}.bin"] = FileFacts(tokens=self._length)
        self.facts[name] = FileFacts(rows=table.num_rows)
        self._open = self._handle = None
        self._tables, self._length = [], 0
        self._shard += 1


def _framed(encoded: list[NDArray[np.int32]], tokenizer: Tokenizer) -> NDArray[np.int32]:
    """All documents back to back, each between BOS and EOS."""
    bos, eos = (np.array([index], dtype=np.int32) for index in (tokenizer.bos_id, tokenizer.eos_id))
    return np.concatenate([part for ids in encoded for part in (bos, ids, eos)])
