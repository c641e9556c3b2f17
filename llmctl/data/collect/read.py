"""From an entry to its documents: the reader that fits its name, and what happens where it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llmctl.config.errors import InputError
from llmctl.data.collect.archives import tar_members, zip_members
from llmctl.data.collect.document import ERRORS, Document, UnreadableError
from llmctl.data.collect.entry import Entry
from llmctl.data.collect.formats import format_of
from llmctl.data.collect.mediawiki import read_mediawiki
from llmctl.data.collect.rows import read_csv, read_jsonl, read_parquet
from llmctl.data.collect.text import read_text
from llmctl.data.collect.warc import read_arc, read_warc

READERS: dict[str, Callable[[Entry], Iterator[Document]]] = {
    "text": read_text,
    "script": read_text,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "parquet": read_parquet,
    "mediawiki": read_mediawiki,
    "warc": read_warc,
    "arc": read_arc,
}
ARCHIVES: dict[str, Callable[[Entry], Iterator[Entry]]] = {"tar": tar_members, "zip": zip_members}


def read_entry(entry: Entry) -> Iterator[Document]:
    """All documents of one entry, archives within it included; what gives none is counted.

    Raises:
        InputError: the entry is damaged, and strict.
    """
    try:
        yield from _documents(entry)
    except UnreadableError as fault:
        if fault.reason == "decompression_bomb" and entry.depth:
            raise  # the file of the disk is spent as a whole
        if entry.strict and fault.reason in ERRORS:
            raise InputError(fault.what, hint=fault.hint) from fault
        entry.reading.tally.drop(fault.reason, fault.what)


def _documents(entry: Entry) -> Iterator[Document]:
    kind = format_of(entry.name)
    if kind in ARCHIVES:
        if entry.depth >= entry.reading.config.max_archive_depth:
            raise UnreadableError("nested_archive", f"{entry.where} lies {entry.depth} archives deep")
        for member in ARCHIVES[kind](entry):
            yield from read_entry(member)
    elif kind:
        yield from READERS[kind](entry)
    else:
        entry.reading.tally.skipped["unknown_format"] += 1
