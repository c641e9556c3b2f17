"""The documents that `pack` lays into rows: token shards of one artifact or of several, as one list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from llmctl.config.errors import InputError
from llmctl.data.split import position
from llmctl.data.tables import read_parquet
from llmctl.store.artifact import Artifact
from llmctl.tokens.fit import Ints
from llmctl.tokens.rows import mapped, ranges

TABLE_ROWS = 1 << 16
COLUMNS = ["id", "source", "tokens", "bytes"]
SAME = ("tokenizer", "dtype", "vocab_size", "bos_id", "eos_id", "pad_id")  # facts in which sources must agree


@dataclass(frozen=True)
class Corpus:
    """Where every document's tokens are. Arrays have one element per document: source by source, shard by shard.

    Attributes:
        shards: the token files, mapped.
        shard: int32, which of them.
        offset: int64, of the first token within the shard.
        tokens: int64, length.
        heldout: bool.
        source: int32, number of the source.
        identity: uint64, xxh64 of the document's id.
    """

    shards: list[NDArray[Any]]
    shard: NDArray[np.int32]
    offset: Ints
    tokens: Ints
    heldout: NDArray[np.bool_]
    source: NDArray[np.int32]
    identity: NDArray[np.uint64]

    def documents(self, split: str) -> Ints:
        """Indices of the documents of a split."""
        return np.flatnonzero(self.heldout == (split == "heldout"))

    def gather(self, documents: Ints, start: Ints, length: Ints, out: NDArray[Any], place: Ints) -> None:
        """Copy slices of documents into a flat array, a gather per shard.

        Args:
            documents: index of the document of each slice.
            start: its first token within the document.
            length: its tokens.
            out: where the tokens go.
            place: where in `out` each slice begins.
        """
        origin, shard = self.offset[documents] + start, self.shard[documents]
        for number in np.unique(shard).tolist():
            chosen = np.flatnonzero(shard == number)
            sizes = length[chosen]
            out[ranges(place[chosen], sizes)] = self.shards[number][ranges(origin[chosen], sizes)]


def read_corpus(sources: Mapping[str, Artifact], heldout_fraction: float) -> Corpus:
    """Map the shards of every source, and say which documents are held out.

    Where the fraction is so small that it holds out none of several documents, the one nearest to it is.

    Raises:
        InputError: a source holds no documents, or the sources' tokenizers differ.
        IntegrityError: a file is not as long as its table says.
    """
    _refuse_other_tokens(sources)
    shards: list[NDArray[Any]] = []
    parts: list[tuple[NDArray[np.int32], Ints, Ints, NDArray[np.int32]]] = []
    positions: list[NDArray[np.float64]] = []
    identities: list[NDArray[np.uint64]] = []
    for number, artifact in enumerate(sources.values()):
        dtype, tokens_seen = np.dtype(artifact.manifest.semantic["dtype"]), 0
        for path in artifact.files(suffix=".parquet"):
            size = 0
            for batch in read_parquet(path, ["id", "offset", "tokens"], TABLE_ROWS):
                names = batch.column("id").to_pylist()
                positions.append(np.fromiter(map(position, names), np.float64, len(names)))
                identities.append(np.fromiter(map(_hash, names), np.uint64, len(names)))
                offset, tokens = (batch.column(name).to_numpy().astype(np.int64) for name in ("offset", "tokens"))
                places = (np.full(len(names), value, dtype=np.int32) for value in (len(shards), number))
                shard, source = places
                parts.append((shard, offset, tokens, source))
                size += int(tokens.sum())
            binary = path.with_name(path.name.replace("documents-", "tokens-").replace(".parquet", ".bin"))
            shards.append(mapped(binary, dtype, size * dtype.itemsize))
            tokens_seen += size
        if not tokens_seen:
            raise InputError(f"{artifact.ref} holds no documents", hint=f"see llmctl show {artifact.ref}")
    shard, offset, tokens, source = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    where = np.concatenate(positions)
    held = where < heldout_fraction
    if heldout_fraction and not held.any() and held.size > 1:
        held[where.argmin()] = True
    return Corpus(shards, shard, offset, tokens, held, source, np.concatenate(identities))


def document_batches(sources: Mapping[str, Artifact]) -> Iterator[pa.RecordBatch]:
    """The table of the documents in the order of the corpus: id, source, tokens, bytes."""
    for artifact in sources.values():
        for path in artifact.files(suffix=".parquet"):
            yield from read_parquet(path, COLUMNS, TABLE_ROWS)


def _hash(document_id: str) -> int:
    return xxhash.xxh64_intdigest(document_id.encode())


def _refuse_other_tokens(sources: Mapping[str, Artifact]) -> None:
    first, *others = sources.values()
    for artifact in others:
        for name in SAME:
            ours, theirs = first.manifest.semantic[name], artifact.manifest.semantic[name]
            if ours != theirs:
                raise InputError(
                    f"{first.ref} and {artifact.ref} differ in {name}: {ours} and {theirs}",
                    hint="tokenize all sources with one tokenizer: llmctl tokenize … --tokenizer REF",
                )
