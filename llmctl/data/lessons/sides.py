"""Both sides of what was made from documentation, each in files of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from llmctl.data.table_writer import RowsDigest, TableWriter
from llmctl.data.tables import SPLIT_PREFIXES
from llmctl.pipeline.job import FileFacts


def write_sides(
    out: Path, schema: pa.Schema, sides: Mapping[str, list[dict[str, Any]]]
) -> tuple[dict[str, FileFacts], RowsDigest]:
    """The files of all sides (by split, in order), and the digest of all rows; a side without rows has no file."""
    files: dict[str, FileFacts] = {}
    digest = RowsDigest()
    for split, rows in sides.items():
        with TableWriter(out, schema, prefix=SPLIT_PREFIXES[split]) as writer:
            writer.write_rows(rows)
        written = writer.close() if rows else {}
        files |= {name: replace(facts, split=split) for name, facts in written.items()}
        digest.merge(writer.digest.hexdigest(), writer.digest.rows)
    return files, digest
