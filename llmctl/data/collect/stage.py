"""The stage `collect`: sources in, one table of documents out."""

from __future__ import annotations

from llmctl.config.data import CollectConfig
from llmctl.config.errors import InputError, UsageError
from llmctl.data.collect.document import Document, Source, Tally, UniqueIds
from llmctl.data.collect.files import open_source, safe_name
from llmctl.data.collect.python_docs import NAME as PYTHON_DOCS
from llmctl.data.collect.python_docs import PythonDocs
from llmctl.data.tables import BATCH_ROWS, DOCUMENTS, SCHEMA_NAMES, TableWriter
from llmctl.pipeline.job import Job, Product
from llmctl.store.manifest import sha256_of

BATCH_BYTES = 8 << 20


def open_sources(config: CollectConfig) -> list[Source]:
    """The sources in the order given; a `UsageError` where there is none, an `InputError` where one is missing."""
    if not config.sources:
        raise UsageError("collect needs a source", hint="give files, folders, patterns, or python-docs")
    return [
        PythonDocs() if name == PYTHON_DOCS else open_source(name, config.max_document_bytes, config.license)
        for name in config.sources
    ]


def source_name(config: CollectConfig) -> str:
    """The artifact's name where the user gives none: the first source's (`python-docs`, `notes`)."""
    return safe_name(open_sources(config)[0].name)


def fingerprint(config: CollectConfig) -> dict[str, str]:
    """`sha256:…` of everything that will be read, by the source's name, before any work.

    Files count with their bytes and their name within the source; where the source lies does not count.

    Raises:
        InputError: for the first source that is missing or unreadable.
    """
    digests: dict[str, str] = {}
    for position, source in enumerate(open_sources(config)):
        role = source.name if source.name not in digests else f"{source.name}-{position + 1}"
        digests[role] = sha256_of({"position": position, "content": source.fingerprint()})
    return digests


def sources(config: CollectConfig) -> tuple[str, dict[str, str]]:
    """The default artifact name, and the digest of everything that will be read, for the action key."""
    return source_name(config), fingerprint(config)


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
        for source in open_sources(config):
            for document in source.documents(tally):
                if collector.documents == config.limit:
                    break
                collector.add(document)
                if collector.documents % BATCH_ROWS == 0:
                    job.progress.update(collector.documents, config.limit, "documents", bytes=collector.bytes)
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


def _why_empty(tally: Tally) -> str:
    counted = [f"{count} {reason}" for reason, count in sorted((tally.dropped + tally.skipped).items())]
    return f"left out: {', '.join(counted)}" if counted else "give files with text in them"
