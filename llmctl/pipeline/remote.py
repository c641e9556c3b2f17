"""Inputs that lie elsewhere: a file named by its URL where a role takes plain files."""

from __future__ import annotations

import os
from typing import Any

from llmctl.config.errors import UsageError
from llmctl.pipeline.job import Silent
from llmctl.pipeline.stage import load
from llmctl.store.artifact import FileInput
from llmctl.store.layout import downloads_directory
from llmctl.store.store import Store

FETCH = "llmctl.data.collect.fetch:fetch_all"  # as `collect` does; imported only where it is needed
BOUNDS = "llmctl.data.collect.fetch:Limits"
NETWORK = "llmctl.data.collect.fetch:Network"
ALLOW_PRIVATE = "LLMCTL_ALLOW_PRIVATE"
"""Set to 1 where inputs may come from this machine and its private networks."""
READ = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".json", ".parquet")


def is_remote(ref: str) -> bool:
    """Whether it is a URL, and so neither a path nor a reference."""
    scheme, found, _ = ref.partition("://")
    return bool(found) and scheme.isalnum()


def remote_file(ref: str, kind: str, store: Store) -> FileInput:
    """The file behind a URL (https, s3, gs, hf), in the store's downloads; again only where it changed there.

    Args:
        ref: the URL; `#sha256=…` at its end pins the bytes.
        kind: of the rows that it holds.
        store: where downloads are kept.

    Raises:
        InputError: it is refused, missing, damaged or not to be had.
        UsageError: it stands for several files, or for none that is read.
    """
    network = load(NETWORK)(os.environ.get(ALLOW_PRIVATE) == "1")
    hauls: dict[str, Any] = load(FETCH)(
        [ref], downloads_directory(store.root), load(BOUNDS)(), network, Silent(), lambda name: name.endswith(READ)
    )
    files = hauls[ref].files
    if len(files) != 1:
        named = ", ".join(file.name for file in files[:5]) or "none of .jsonl or .parquet"
        raise UsageError(f"{ref} stands for {len(files)} files ({named})", hint="name one of them")
    return FileInput(files[0].path, f"sha256:{files[0].sha256}", kind)
