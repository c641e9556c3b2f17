"""The stage `collect`: sources in, one table of documents out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from llmctl.config.collect import CollectConfig
from llmctl.config.errors import InputError, UsageError
from llmctl.data.collect.document import Document, Source, Tally, UniqueIds
from llmctl.data.collect.fetch import Haul, Limits, Network, fetch_all, is_remote
from llmctl.data.collect.files import is_known, open_haul, open_source, safe_name
from llmctl.data.collect.python_docs import NAME as PYTHON_DOCS
from llmctl.data.collect.python_docs import PythonDocs
from llmctl.data.table_writer import TableWriter
from llmctl.data.tables import BATCH_ROWS, DOCUMENTS, SCHEMA_NAMES
from llmctl.pipeline.job import Job, Product, Progress
from llmctl.store.manifest import sha256_of

BATCH_BYTES = 8 << 20


def fetch_sources(config: CollectConfig, directory: Path, progress: Progress) -> dict[str, Haul]:
    """Bring every source that is a URL into `directory`, if it is not there yet; by source, its verified files.

    Raises:
        InputError: for the first that is refused, missing, damaged or not to be had.
    """
    limits = Limits(max_bytes=config.max_download_bytes, total_s=config.timeout_s)
    urls = [source for source in config.sources if is_remote(source)]
    return fetch_all(
        urls, directory, limits, Network(config.allow_private), progress, lambda name: is_known(Path(name))
    )


def open_sources(config: CollectConfig, fetched: Mapping[str, Haul] | None = None) -> Iterator[Source]:
    """The sources in the order given, each opened when its turn comes.

    Args:
        config: what to open.
        fetched: what `fetch_sources` gave; URLs are read from there.

    Raises:
        UsageError: there is none.
        InputError: for the first that is missing or unreadable.
    """
    if not config.sources:
        raise UsageError("collect needs a source", hint="give files, folders, patterns, or python-docs")
    for name in config.sources:
        if name == PYTHON_DOCS:
            yield PythonDocs()
        elif fetched is not None and name in fetched:
            yield open_haul(name, fetched[name], config.max_document_bytes, config.license)
        else:
            yield open_source(name, config.max_document_bytes, config.license)


def sources(config: CollectConfig, fetched: Mapping[str, Haul] | None = None) -> tuple[str, dict[str, str]]:
    """The artifact's name where the user gives none, and `sha256:…` of everything that will be read, by role.

    The name is the first source's (`python-docs`, `notes`). A source's role is its name too. Files count with
    their bytes and their name within the source; where the source lies does not count.

    Raises:
        UsageError: there is no source.
        InputError: for the first source that is missing or unreadable.
    """
    digests: dict[str, str] = {}
    for number, source in enumerate(open_sources(config, fetched)):
        role = source.name if source.name not in digests else f"{source.name}-{number + 1}"
        digests[role] = sha256_of({"position": number, "content": source.fingerprint()})
    return safe_name(next(iter(digests))), digests


class Collector:
    """Writes documents, in batches, with unique ids.

    Attributes:
        documents, bytes: what was written.
        licenses: SPDX identifiers seen.
    """

    def __init__(self, writer: TableWriter, tally: Tally, max_document_bytes: int) -> None:
        self.documents = self.bytes = 0
        self.licenses: set[str] = set()
        self.ids = UniqueIds()
        self._writer = writer
        self._tally = tally
        self._max_document_bytes = max_document_bytes
        self._rows: list[dict[str, str]] = []
        self._waiting_bytes = 0

    def add(self, document: Document) -> None:
        """Take one document, or count why not."""
        size = len(document.text.encode())
        if not document.text.strip():
            self._tally.dropped["empty"] += 1
            return
        if size > self._max_document_bytes:
            self._tally.dropped["too_large"] += 1
            return
        self.documents += 1
        self.bytes += size
        if document.license:
            self.licenses.add(document.license)
        row = {name: getattr(document, name) for name in DOCUMENTS.names}
        self._rows.append(row | {"id": self.ids(document.id)})
        self._waiting_bytes += size
        if len(self._rows) >= BATCH_ROWS or self._waiting_bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._rows:
            self._writer.write_rows(self._rows)
        self._rows, self._waiting_bytes = [], 0


def run(job: Job[CollectConfig]) -> Product:
    """Read every source into `part-*.parquet`."""
    config, tally = job.config, Tally()
    with TableWriter(job.out, DOCUMENTS) as writer:
        collector = Collector(writer, tally, config.max_document_bytes)
        _read(job, collector, tally)
        collector.flush()
        files = writer.close()
    if not collector.documents:
        raise InputError(f"no document found in {', '.join(config.sources)}", hint=_why_empty(tally))
    for note in tally.notes:
        job.progress.note(note)
    if collector.ids.renamed:
        job.progress.note(f"{collector.ids.renamed} ids occur more than once; the later ones end in ~2, ~3, …")
    totals: dict[str, int | float | str] = {"documents": collector.documents, "bytes": collector.bytes}
    totals |= {f"dropped.{reason}": count for reason, count in sorted(tally.dropped.items())}
    totals |= {f"skipped.{reason}": count for reason, count in sorted(tally.skipped.items())}
    totals["rows_digest"] = writer.digest.hexdigest()
    job.log({"stage": "collect", **totals})
    return Product(
        SCHEMA_NAMES["documents"], totals=totals, files=dict(files), license=tuple(sorted(collector.licenses))
    )


def _read(job: Job[CollectConfig], collector: Collector, tally: Tally) -> None:
    """Everything up to the limit; a source beyond it is not opened."""
    limit = job.config.limit
    for source in open_sources(job.config, job.fetched):
        for document in source.documents(tally):
            collector.add(document)
            if collector.documents % BATCH_ROWS == 0:
                job.progress.update(collector.documents, limit, "documents", bytes=collector.bytes)
            if collector.documents == limit:
                return


def _why_empty(tally: Tally) -> str:
    counted = [f"{count} {reason}" for reason, count in sorted((tally.dropped + tally.skipped).items())]
    return f"left out: {', '.join(counted)}" if counted else "give files with text in them"
