"""The index of a deduplicated corpus: enough to find a later document's earlier copy without the earlier text.

`index-*.parquet` has a row for each document that stayed: its id, its exact key, a key for each band, and the
top 40 bits of its shingle hashes, sorted, as differences (about 4 bytes each). Two different shingles agree in
40 bits with probability 10^-12, so among two documents of 600 words one in 3,000,000 pairs reads one shingle
too much: a similarity computed from it is still exact for all practical purposes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llmctl.config.dedup import DedupConfig
from llmctl.config.errors import InputError
from llmctl.data.dedup.groups import Rows
from llmctl.data.dedup.kernel import Hashes, Shingles
from llmctl.data.dedup.keys import EXACT, band_names
from llmctl.data.dedup.minhash import Banding
from llmctl.data.dedup.sets import HASHES_FILE, write_offsets
from llmctl.data.parts import Report
from llmctl.data.tables import read_parquet
from llmctl.store.artifact import Artifact
from llmctl.store.files import publish

PREFIX = "index"
FORMAT = "llmctl.dedup-index/1"
SHIFT = 24  # lowest bits of a shingle hash that the index leaves out


def facts(config: DedupConfig, banding: Banding) -> dict[str, Any]:
    """What two corpora must have in common to be compared; part of the artifact's digest."""
    return {
        "format": FORMAT, "ngram_words": config.ngram_words, "seed": config.seed,
        "permutations": config.permutations, "bands": banding.bands, "rows": banding.rows,
    }  # fmt: skip


def index_schema(bands: int) -> pa.Schema:
    """Columns of the index."""
    keys = [pa.field(name, pa.uint64()) for name in (*EXACT, *band_names(bands))]
    return pa.schema([pa.field("id", pa.string()), *keys, pa.field("shingles", pa.list_(pa.int64()))])


class IndexWriter:
    """Writes `index-00000.parquet` of one part, batch by batch.

    Args:
        path: of the file.
        bands: of the band keys.
    """

    def __init__(self, path: Path, bands: int) -> None:
        self.rows = 0
        self._schema = index_schema(bands)
        self._open = contextlib.ExitStack()
        handle = self._open.enter_context(publish(path))
        self._writer = self._open.enter_context(
            pq.ParquetWriter(
                handle, self._schema, compression="zstd", use_dictionary=False,
                column_encoding={"shingles.list.element": "DELTA_BINARY_PACKED"},
            )
        )  # fmt: skip

    def write(self, ids: pa.Array, keys: Sequence[npt.NDArray[np.uint64]], sets: Shingles) -> None:
        """Add documents; `keys` are the columns between `id` and `shingles`."""
        lists = pa.ListArray.from_arrays(
            pa.array(sets.offsets.astype(np.int32)), pa.array((sets.hashes >> np.uint64(SHIFT)).astype(np.int64))
        )
        columns = [ids, *(pa.array(key) for key in keys), lists]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self.rows += len(ids)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._open.__exit__(*raised)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Index:
    """The index of an earlier corpus.

    Attributes:
        ref: what the corpus was asked for as.
        files: its `index-*.parquet`, in order.
    """

    ref: str
    files: list[Path]

    @classmethod
    def of(cls, artifact: Artifact, wanted: dict[str, Any]) -> Index:
        """The index in `artifact`, which must have been made as `wanted` says.

        Raises:
            InputError: there is none, or it was made in another way.
        """
        held = artifact.manifest.semantic.get("index")
        if held is None:
            raise InputError(
                f"{artifact.ref} holds no index to deduplicate against",
                hint=f"make it again: llmctl dedup … index=true --name {artifact.name}",
            )
        other = [f"{name} {held.get(name)}, not {value}" for name, value in wanted.items() if held.get(name) != value]
        if other:
            raise InputError(
                f"the index of {artifact.ref} was made with {', '.join(other)}",
                hint="use the same threshold, permutations, ngram_words and seed for both",
            )
        files = [path for path in artifact.files(suffix=".parquet") if path.name.startswith(f"{PREFIX}-")]
        return cls(artifact.ref, files)

    def counts(self) -> list[int]:
        """Documents in each file."""
        return [pq.read_metadata(path).num_rows for path in self.files]

    def table(self, *columns: str) -> pa.Table:
        """These columns of every document."""
        batches = [batch for path in self.files for batch in read_parquet(path, columns)]
        schema = pa.schema([field for field in index_schema(1000) if field.name in columns])
        return pa.Table.from_batches(batches, schema=batches[0].schema if batches else schema)

    def column(self, name: str) -> Hashes:
        """One column of keys."""
        values: Hashes = self.table(name).column(name).to_numpy()
        return values


@dataclass(frozen=True)
class IndexTask:
    """One file of an index, and the documents in it whose sets are wanted, ascending."""

    path: Path
    rows: Rows


def spill_index(task: IndexTask, directory: Path) -> Report:
    """The wanted sets in the form of `spill_sets`, with zeros for the bits that the index leaves out."""
    found = []
    first = 0
    with publish(directory / HASHES_FILE) as handle:
        for batch in read_parquet(task.path, ["shingles"]) if len(task.rows) else ():
            low, high = np.searchsorted(task.rows, (first, first + batch.num_rows))
            chosen = batch.column("shingles").take(pa.array(task.rows[low:high] - first))
            handle.write((chosen.flatten().to_numpy().astype(np.uint64) << np.uint64(SHIFT)).data)
            found.append(chosen.value_lengths().to_numpy().astype(np.int64))
            first += batch.num_rows
    write_offsets(directory, found)
    return Report()
