"""Rows of a file or artifact as they are, whatever their columns: what evaluation sets are read as."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmctl.config.errors import InputError
from llmctl.data.lines import decode, open_bytes, plain_suffix, read_objects, readable
from llmctl.data.tables import parts_of, read_parquet
from llmctl.store.artifact import FileInput, Input

LINES = (".jsonl", ".ndjson", ".json")


def raw_rows(given: Input) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, values) of each row of an artifact or of a plain file; a text file is one row, `text`.

    Raises:
        InputError: the file is of another kind, or damaged.
    """
    if isinstance(given, FileInput):
        suffix = plain_suffix(given.path)
        if suffix in LINES:
            for number, row in read_objects(given.path):
                yield f"{given.path.name}:{number}", row
            return
        if suffix == ".txt":
            with readable(given.path), open_bytes(given.path) as handle:
                yield given.path.name, {"text": decode(handle.read(), given.path)}
            return
        if suffix != ".parquet":
            raise InputError(
                f"{given.path}: unknown format", hint="give a .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt file"
            )
    paths = [given.path] if isinstance(given, FileInput) else parts_of(given)
    for path in paths:
        assert isinstance(path, Path)
        number = 0
        for batch in read_parquet(path):
            for row in batch.to_pylist():
                number += 1
                yield f"{path.name}:{number}", row
