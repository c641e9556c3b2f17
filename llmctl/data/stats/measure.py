"""Statistics of documents, measured part by part and added up."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmctl.config.errors import InputError
from llmctl.config.stats import StatsConfig
from llmctl.data.stats.ngrams import NgramCounter
from llmctl.data.stats.values import Ints, Values
from llmctl.data.tables import DOCUMENTS, conform, read_part
from llmctl.data.workers import Native, open_workers
from llmctl.pipeline.job import Progress
from llmctl.store.artifact import Artifact

COLUMNS = ("language", "license", "source", "domain", "split")
SMALL_BYTES = 16 << 20  # as stored: worker processes would take longer to start than this takes to read
PIECE_BYTES = 4 << 20
UNKNOWN_SPLIT = "all"


@dataclass
class Tally:
    """What was counted.

    Attributes:
        documents, sizes: by property (language, license, source, domain, split) and value: how many documents
            have it, and their UTF-8 bytes. "" is a value too: not stated.
        lengths: distributions by unit: `bytes`, `characters`, `words`.
        ngrams: the most frequent n-grams.
    """

    ngrams: NgramCounter
    documents: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in COLUMNS})
    sizes: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in COLUMNS})
    lengths: dict[str, Values] = field(
        default_factory=lambda: {unit: Values() for unit in ("bytes", "characters", "words")}
    )

    def merge(self, other: Tally) -> None:
        """Add what was counted in another part."""
        self.ngrams.merge(other.ngrams)
        for name in COLUMNS:
            self.documents[name].update(other.documents[name])
            self.sizes[name].update(other.sizes[name])
        for unit, values in self.lengths.items():
            values.merge(other.lengths[unit])


@dataclass(frozen=True)
class Task:
    """One part of the artifact."""

    part: Path
    split: str
    config: StatsConfig


def measure_part(task: Task) -> Tally:
    """Count everything in one part."""
    tally = Tally(NgramCounter(task.config.ngram_words, task.config.ngrams_kept))
    for batch in read_part(task.part):
        for piece in _pieces(conform(batch, DOCUMENTS)):
            _add(tally, piece, task.split)
    return tally


def measure(artifact: Artifact, config: StatsConfig, progress: Progress) -> Tally:
    """Count everything in an artifact. The result does not depend on the number of workers.

    Memory: a part's batch and its n-grams per worker, and every different domain, source, licence, language
    and length once.

    Raises:
        InputError: it holds no document.
    """
    tally = Tally(NgramCounter(config.ngram_words, config.ngrams_kept))
    tasks = list(_tasks(artifact, config))
    small = config.engine == "native" and artifact.bytes <= SMALL_BYTES
    workers = Native(1) if small else open_workers(config)
    for done, part in enumerate(workers.map(measure_part, tasks), start=1):
        tally.merge(part)
        progress.update(done, len(tasks), "parts", documents=tally.lengths["bytes"].count)
    if not tally.lengths["bytes"].count:
        raise InputError(f"{artifact.ref} holds no document", hint=f"see llmctl show {artifact.ref}")
    return tally


def report(artifact: Artifact, tally: Tally, config: StatsConfig) -> dict[str, Any]:
    """Everything as JSON values; what `llmctl stats --json` prints."""
    lengths = tally.lengths
    return {
        "ref": artifact.ref,
        "digest": artifact.digest,
        "kind": artifact.kind,
        "documents": lengths["bytes"].count,
        **{unit: values.total for unit, values in lengths.items()},
        "stored_bytes": artifact.bytes,
        "lengths": {unit: {**values.summary(), "histogram": values.histogram()} for unit, values in lengths.items()},
        **{_plural(name): _listed(tally, name, config.top) for name in COLUMNS},
        "ngrams": [
            {
                "words": length,
                "counted": found.items,
                "error": found.error,
                "top": [{"text": text, "count": count} for text, count in found.top(config.top)],
            }
            for length, found in tally.ngrams.found.items()
        ],
    }


def _tasks(artifact: Artifact, config: StatsConfig) -> Iterator[Task]:
    for entry in artifact.manifest.files:
        path = artifact.path / entry.path
        if path.name.startswith("part-") and path.suffix == ".parquet":
            yield Task(path, entry.split or UNKNOWN_SPLIT, config)


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """`batch` in stretches of about `PIECE_BYTES` of text: its words are all in memory at once."""
    ends = np.cumsum(_bytes_of(batch))
    places = np.flatnonzero(np.diff(ends // PIECE_BYTES, prepend=0))
    for start, end in itertools.pairwise(sorted({0, *places.tolist(), batch.num_rows})):
        yield batch.slice(start, end - start)


def _bytes_of(batch: pa.RecordBatch) -> Ints:
    sizes: Ints = pc.binary_length(batch.column("text")).to_numpy(zero_copy_only=False).astype(np.int64)
    return sizes


def _add(tally: Tally, batch: pa.RecordBatch, split: str) -> None:
    texts = batch.column("text").to_pylist()
    sizes = _bytes_of(batch)
    tally.lengths["bytes"].merge(Values(sizes))
    tally.lengths["characters"].merge(Values(np.array([len(text) for text in texts], dtype=np.int64)))
    tally.lengths["words"].merge(Values(tally.ngrams.add(texts)))
    values = {
        "language": batch.column("lang").to_pylist(),
        "license": batch.column("license").to_pylist(),
        "source": batch.column("source").to_pylist(),
        "domain": [domain(url) for url in batch.column("url").to_pylist()],
        "split": [split] * len(texts),
    }
    for name, found in values.items():
        for value, size in zip(found, sizes.tolist(), strict=True):
            tally.documents[name][value] += 1
            tally.sizes[name][value] += size


def domain(url: str) -> str:
    """The host of an address in lower case, without `www.`; "" where it has none."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return ""
    return (host or "").removeprefix("www.")


def _listed(tally: Tally, name: str, most: int) -> dict[str, Any]:
    """How many values there are, and the commonest with their documents and bytes."""
    counts = tally.documents[name]
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {
        "different": len(counts),
        "top": [
            {"value": value, "documents": count, "bytes": tally.sizes[name][value]} for value, count in ordered[:most]
        ],
    }


def _plural(name: str) -> str:
    return f"{name}s"
