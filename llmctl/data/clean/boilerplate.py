"""Lines that recur in many documents of one site: counted over all parts, then removed.

Exact, and bounded in memory: every part writes its (line, site) keys with their counts, sorted; the sums are made one
range of keys at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from llmctl.config.clean_steps import BoilerplateConfig
from llmctl.data.clean.kernel import with_text
from llmctl.data.clean.urls import host_of
from llmctl.store.files import explained, publish

LINES_FILE = "lines-00000.parquet"
SITES_FILE = "sites-00000.parquet"
LINES = pa.schema([("key", pa.uint64()), ("site", pa.uint64()), ("documents", pa.uint32())])
SITES = pa.schema([("site", pa.uint64()), ("documents", pa.uint32())])
GROUP_ROWS = 1 << 16
RANGE_ROWS = 1 << 22  # rows summed at a time: about 80 MB

Keys = npt.NDArray[np.uint64]


def sites_of(batch: pa.RecordBatch, by: str) -> list[int]:
    """64-bit hash of every document's site: the URL's host, or the source where there is none or it is wanted."""
    urls, sources = batch.column("url").to_pylist(), batch.column("source").to_pylist()
    names = [
        (host_of(url) if by == "host" else "") or f"source {source}" for url, source in zip(urls, sources, strict=True)
    ]
    return [xxhash.xxh3_64_intdigest(name.encode()) for name in names]


def line_key(line: str, site: int) -> int:
    """64-bit hash of a line, without the blanks around it, on a site."""
    return xxhash.xxh3_64_intdigest(line.strip().encode(), seed=site)


class LineCounts:
    """Counts, for one part, in how many documents of its site a line occurs."""

    def __init__(self, config: BoilerplateConfig) -> None:
        self.config = config
        self.lines: Counter[tuple[int, int]] = Counter()  # (key, site)
        self.sites: Counter[int] = Counter()

    def add(self, batch: pa.RecordBatch) -> None:
        """Count the documents of `batch`."""
        for site, text in zip(sites_of(batch, self.config.by), batch.column("text").to_pylist(), strict=True):
            long = {line for line in text.split("\n") if len(line.strip()) >= self.config.min_characters}
            self.lines.update({(line_key(line, site), site) for line in long})
            self.sites[site] += 1

    def write(self, directory: Path) -> None:
        """Write `lines-00000.parquet`, sorted by key, and `sites-00000.parquet`."""
        keys = sorted(self.lines)
        counted = {"key": [key for key, _ in keys], "site": [site for _, site in keys]}
        table = pa.Table.from_pydict({**counted, "documents": [self.lines[key] for key in keys]}, schema=LINES)
        sites = sorted(self.sites)
        known = pa.Table.from_pydict({"site": sites, "documents": [self.sites[site] for site in sites]}, schema=SITES)
        for name, content in ((LINES_FILE, table), (SITES_FILE, known)):
            with explained(str(directory / name)), publish(directory / name) as handle:
                pq.write_table(content, handle, compression="zstd", row_group_size=GROUP_ROWS)


def recurring(directories: Sequence[Path], config: BoilerplateConfig) -> Keys:
    """The keys of all lines that are to go, sorted.

    Args:
        directories: where `LineCounts.write` wrote, a part each.
        config: the share and number of a site's documents from which on a line goes.
    """
    paths = [directory / LINES_FILE for directory in directories]
    with explained(str(directories[0].parent) if directories else "parts"):
        documents = _summed(pq.read_table(directory / SITES_FILE) for directory in directories)
        rows = sum(pq.read_metadata(path).num_rows for path in paths)
        parts = 1 + rows // RANGE_ROWS
        found = [_of_range(paths, low, high, documents, config) for low, high in _ranges(parts)]
    return np.concatenate(found) if found else np.empty(0, np.uint64)


def _ranges(parts: int) -> Iterator[tuple[int, int]]:
    """The range of 64-bit keys in equal parts, both ends included."""
    edges = [2**64 * number // parts for number in range(parts + 1)]
    for low, high in pairwise(edges):
        yield low, high - 1


def _summed(tables: Iterable[pa.Table]) -> dict[int, int]:
    total: Counter[int] = Counter()
    for table in tables:
        for site, count in zip(table["site"].to_pylist(), table["documents"].to_pylist(), strict=True):
            total[site] += count
    return total


def _of_range(paths: Sequence[Path], low: int, high: int, documents: dict[int, int], config: BoilerplateConfig) -> Keys:
    """The keys from `low` to `high` that recur often enough."""
    key = pc.field("key")
    wanted = (key >= pa.scalar(low, pa.uint64())) & (key <= pa.scalar(high, pa.uint64()))
    table = pa.concat_tables([LINES.empty_table(), *(pq.read_table(path, filters=wanted) for path in paths)])
    keys, places = np.unique(table["key"].to_numpy(), return_inverse=True)
    counts = np.bincount(places, weights=table["documents"].to_numpy(), minlength=len(keys))
    sites = np.zeros(len(keys), np.uint64)
    sites[places] = table["site"].to_numpy()  # one site a key: the site is hashed into it
    often = counts >= config.min_documents
    of_site = np.array([documents[int(site)] for site in sites[often]], dtype=np.float64)
    return keys[often][counts[often] >= config.min_share * of_site]


class WithoutBoilerplate:
    """Removes the lines whose keys are given, and the blank lines that then meet.

    Attributes:
        counts: `boilerplate.lines` and `boilerplate.bytes` that went, over all batches so far.
    """

    def __init__(self, config: BoilerplateConfig, keys: Keys) -> None:
        self.config = config
        self.keys = frozenset(keys.tolist())
        self.counts: Counter[str] = Counter()

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`batch` with shorter texts."""
        pairs = zip(sites_of(batch, self.config.by), batch.column("text").to_pylist(), strict=True)
        return with_text(batch, [self.rewrite(text, site) for site, text in pairs])

    def rewrite(self, text: str, site: int) -> str:
        """One text of the site."""
        kept: list[str] = []
        gone = False
        for line in text.split("\n"):
            if len(line.strip()) >= self.config.min_characters and line_key(line, site) in self.keys:
                self.counts.update({"boilerplate.lines": 1, "boilerplate.bytes": len(line.encode()) + 1})
                gone = True
            elif line.strip() or not (gone and kept and not kept[-1]):
                kept.append(line)
        return "\n".join(kept).strip("\n") if gone else text
