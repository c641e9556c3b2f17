"""The funnel: what came in, what each rule took out, in order, with an example each; and what was left."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.config.errors import InputError
from llmctl.store.artifact import Artifact
from llmctl.store.files import publish_bytes

if TYPE_CHECKING:  # a summary in the terminal reads the funnel, and no table
    import pyarrow as pa

FUNNEL_FILE = "funnel.json"
FUNNEL_FORMAT = "llmctl.funnel/1"
EXAMPLE = ("id", "source", "url", "value", "text")
EXAMPLE_CHARACTERS = 200
REJECTED_PREFIX = "rejected"

Row = dict[str, Any]


class Funnel:
    """What the rules took out of one part, or of all parts."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, str], Row] = {}  # by (number of the step, reason)

    def add(self, step: int, rejected: pa.RecordBatch) -> None:
        """Count the documents that a step dropped."""
        columns = {
            name: rejected.column(name).to_pylist() for name in ("id", "text", "source", "url", "reason", "value")
        }
        for document_id, text, source, url, reason, value in zip(*columns.values(), strict=True):
            example = {"id": document_id, "source": source, "url": url, "value": value, "text": excerpt(text)}
            row = {"documents": 1, "bytes": len(text.encode()), "example": example}
            self._add(step, reason, row)

    def merge(self, rows: Iterable[Row]) -> None:
        """Add the rows of another part (`to_json`); of two examples the first stays."""
        for row in rows:
            self._add(row["step"], row["rule"], row)

    def _add(self, step: int, reason: str, row: Row) -> None:
        known = self.rows.setdefault((step, reason), {"documents": 0, "bytes": 0, "example": row["example"]})
        known["documents"] += row["documents"]
        known["bytes"] += row["bytes"]

    def to_json(self) -> list[Row]:
        """Rows in the order of the steps; within a step, in that of the reasons' names."""
        return [{"step": step, "rule": reason, **row} for (step, reason), row in sorted(self.rows.items())]

    def content(self, documents: int, kept: int, sizes: tuple[int, int], segments: tuple[int, int] | None) -> Row:
        """What `funnel.json` holds.

        Args:
            documents: that came in.
            kept: documents, or segments, that are left.
            sizes: UTF-8 bytes of the text in and out.
            segments: (number of the step that cut documents, rows that it added); None where none did.
        """
        rows: list[Row] = []
        left = documents
        for row in self.to_json():
            step = row.pop("step")
            if segments is not None and step > segments[0]:
                left = _cut(rows, left, segments[1])
                segments = None
            rows.append({"rule": row["rule"], "in": left, "dropped": row["documents"], "out": left - row["documents"],
                         "bytes": row["bytes"], "example": {key: row["example"][key] for key in EXAMPLE}})  # fmt: skip
            left -= row["documents"]
        if segments is not None:
            left = _cut(rows, left, segments[1])
        if left != kept:
            raise AssertionError(f"{left} documents are left by the funnel, {kept} were kept")
        return {"format": FUNNEL_FORMAT, "in": documents, "bytes_in": sizes[0], "rules": rows, "out": kept,
                "bytes_out": sizes[1]}  # fmt: skip


def _cut(rows: list[Row], left: int, added: int) -> int:
    rows.append({"rule": "segment", "in": left, "dropped": 0, "out": left + added, "bytes": 0, "example": None})
    return left + added


def excerpt(text: str, most: int = EXAMPLE_CHARACTERS) -> str:
    """The start of a text in one line, without characters that a terminal would obey (controls, bidi marks)."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * most]).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def write_funnel(directory: Path, content: Row) -> None:
    """Write `funnel.json` into an artifact's data directory."""
    publish_bytes(directory / FUNNEL_FILE, json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n")


def read_funnel(artifact: Artifact) -> Row | None:
    """The artifact's funnel; None where it has none."""
    if not artifact.holds(FUNNEL_FILE):
        return None
    content: Row = json.loads(artifact.file(FUNNEL_FILE).read_bytes())
    return content


def rejected_examples(artifact: Artifact, rule: str, most: int) -> Iterator[Row]:
    """Documents that a rule dropped, with `value`: whole ones where they were kept, else the funnel's excerpt.

    Args:
        artifact: what `clean` made.
        rule: a reason of its funnel.
        most: examples to give.

    Raises:
        InputError: the artifact has no funnel, or the rule dropped nothing.
    """
    funnel = read_funnel(artifact)
    if funnel is None:
        raise InputError(f"{artifact.ref} holds no {FUNNEL_FILE}", hint="give what llmctl clean made")
    rows = {row["rule"]: row for row in funnel["rules"] if row["dropped"]}
    if rule not in rows:
        raise InputError(
            f"{artifact.ref}: no document was dropped by {rule}", hint=f"rules: {', '.join(rows) or 'none'}"
        )
    kept = [path for path in artifact.files(suffix=".parquet") if path.name.startswith(REJECTED_PREFIX)]
    if not kept:
        yield rows[rule]["example"]
        return
    yield from itertools.islice(_kept_rows(kept, rule), most)


def _kept_rows(paths: Iterable[Path], rule: str) -> Iterator[Row]:
    import pyarrow.compute as pc

    from llmctl.data.tables import read_parquet

    for path in paths:
        for batch in read_parquet(path, ["id", "source", "url", "value", "text", "reason"]):
            for row in batch.filter(pc.equal(batch.column("reason"), rule)).to_pylist():
                del row["reason"]
                yield row
