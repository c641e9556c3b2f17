"""What the documents of an artifact say of themselves, for its card: languages, licences, columns."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from llmctl.store.manifest import FileEntry, Manifest


@dataclass(frozen=True)
class Contents:
    """Counts over all rows; "" stands for rows that say nothing.

    Attributes:
        documents: how many rows.
        languages, licenses: documents by value of the columns `lang` and `license`, the commonest first.
        columns: (name, Arrow type) of the parts.
    """

    documents: int
    languages: dict[str, int]
    licenses: dict[str, int]
    columns: tuple[tuple[str, str], ...]


def parts(manifest: Manifest) -> list[FileEntry]:
    """The Parquet parts that hold the rows."""
    return [
        f for f in manifest.files if f.path.startswith(("data/part-", "data/heldout-")) and f.path.endswith(".parquet")
    ]


def splits(manifest: Manifest) -> dict[str, list[FileEntry]]:
    """The parts by split, sorted; those without one are for training."""
    found: dict[str, list[FileEntry]] = {}
    for entry in parts(manifest):
        found.setdefault(entry.split or "train", []).append(entry)
    return dict(sorted(found.items()))


def read_contents(path: Path, manifest: Manifest) -> Contents | None:
    """Look into the parts of the run directory `path`; None where it holds no documents.

    Only two narrow columns are read, a row group at a time.
    """
    if manifest.kind != "documents" or not parts(manifest):
        return None
    import pyarrow.parquet as pq

    counts: dict[str, Counter[str]] = {"lang": Counter(), "license": Counter()}
    columns: tuple[tuple[str, str], ...] = ()
    rows = 0
    for entry in parts(manifest):
        with pq.ParquetFile(path / entry.path) as table:
            columns = columns or tuple((field.name, str(field.type)) for field in table.schema_arrow)
            rows += table.metadata.num_rows
            wanted = [name for name in counts if name in table.schema_arrow.names]
            for group in range(table.num_row_groups if wanted else 0):
                read = table.read_row_group(group, columns=wanted)
                for name in wanted:
                    for value in read.column(name).value_counts().to_pylist():
                        counts[name][value["values"] or ""] += value["counts"]
    languages, licenses = (_sorted(counts[name]) for name in ("lang", "license"))
    return Contents(rows, languages, licenses, columns)


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
