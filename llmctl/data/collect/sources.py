"""What `collect` can be pointed at, and the pieces that each source consists of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from llmctl.config.collect import CollectConfig
from llmctl.config.errors import UsageError
from llmctl.data.collect.document import Document, Tally
from llmctl.data.collect.fetch import Haul, Limits, Network, fetch_all, is_remote
from llmctl.data.collect.files import open_haul, open_source
from llmctl.data.collect.formats import format_of
from llmctl.data.collect.git import GitSource, is_repository
from llmctl.data.collect.python_docs import NAME as PYTHON_DOCS
from llmctl.data.collect.python_docs import PythonDocs
from llmctl.pipeline.job import Progress
from llmctl.store.manifest import sha256_of


class Piece(Protocol):
    """What one worker reads at a time; it pickles."""

    @property
    def size(self) -> int:
        """Bytes to read; 0 where that is not known."""
        ...

    def documents(self, config: CollectConfig, tally: Tally) -> Iterator[Document]:
        """The documents in a fixed order; what is left out is counted in `tally`."""
        ...


class Source(Protocol):
    """One argument of `collect`."""

    @property
    def name(self) -> str:
        """What its documents carry as `source`."""
        ...

    def fingerprint(self) -> str:
        """`sha256:…` of what will be read. Raises `InputError` where that is missing or unreadable."""
        ...

    def pieces(self, tally: Tally, most: int) -> Iterator[Piece]:
        """The source in order, in pieces of about `most` bytes where it can be divided."""
        ...


def fetch_sources(config: CollectConfig, directory: Path, progress: Progress) -> dict[str, Haul]:
    """Bring every source that is a URL into `directory`, if it is not there yet; by source, its verified files.

    Raises:
        InputError: for the first that is refused, missing, damaged or not to be had.
    """
    limits = Limits(max_bytes=config.max_download_bytes, total_s=config.timeout_s)
    urls = [source for source in config.sources if is_remote(source)]
    return fetch_all(
        urls, directory, limits, Network(config.allow_private), progress, lambda name: bool(format_of(name))
    )


def open_sources(config: CollectConfig, fetched: Mapping[str, Haul] | None = None) -> Iterator[Source]:
    """The sources in the order given.

    Args:
        config: what to open.
        fetched: what `fetch_sources` gave; URLs are read from there.

    Raises:
        UsageError: there is none.
        InputError: for the first that is missing or unreadable.
    """
    if not config.sources:
        raise UsageError("collect needs a source", hint="give files, folders, patterns, repositories or python-docs")
    for name in config.sources:
        path = Path(name).expanduser()
        if name == PYTHON_DOCS:
            yield PythonDocs()
        elif fetched is not None and name in fetched:
            yield open_haul(name, fetched[name])
        elif is_repository(path):
            yield GitSource(path)
        else:
            yield open_source(name)


def digests(opened: list[Source]) -> dict[str, str]:
    """`sha256:…` of everything that will be read, by role: a source's name, numbered where it is there twice."""
    found: dict[str, str] = {}
    for number, source in enumerate(opened):
        role = source.name if source.name not in found else f"{source.name}-{number + 1}"
        found[role] = sha256_of({"position": number, "content": source.fingerprint()})
    return found
