"""Items of tasks that stand in what a checkpoint has learned from: found by the n-grams that both have."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from llmctl.data.decontaminate.items import Item as Texts
from llmctl.data.decontaminate.items import tables, texts_in
from llmctl.data.decontaminate.overlap import find
from llmctl.data.table_writer import TableWriter
from llmctl.data.tables import read_batches
from llmctl.evals.items import Item
from llmctl.evals.load import Loaded
from llmctl.pipeline.job import FileFacts, Progress
from llmctl.store.artifact import Artifact

PREFIX = "contamination"
MIN_WORDS = 8  # a text of fewer words than an n-gram has, but at least so many, is looked for whole
EXCERPT_CHARACTERS = 200
HITS = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in (
            ("task", pa.string()),
            ("part", pa.string()),
            ("id", pa.string()),  # of the item
            ("source", pa.string()),  # the artifact that was learned from
            ("document", pa.string()),  # its row
            ("ngrams", pa.int64()),  # of the item that begin in the span
            ("text", pa.string()),  # the span, or its beginning
        )
    ]
)

TAUGHT = ("prompt", "question", "choices", "messages", "chosen", "rejected")  # columns of what is no document


@dataclass(frozen=True)
class Hit:
    """An item and where it was found."""

    task: str
    item: Item
    source: str
    document: str
    ngrams: int
    text: str

    def as_row(self) -> dict[str, Any]:
        """The row of the table."""
        return {
            "task": self.task, "part": self.item.part, "id": self.item.id, "source": self.source,
            "document": self.document, "ngrams": self.ngrams, "text": self.text[:EXCERPT_CHARACTERS],
        }  # fmt: skip


def hits_of(
    tasks: Sequence[Loaded], learned: Mapping[str, Artifact], ngram_words: int, progress: Progress
) -> list[Hit]:
    """Every place in what was learned from that holds an n-gram of an item.

    Args:
        tasks: whose items are looked for, with all the text that their data has.
        learned: documents, chats and preferences.
        ngram_words: words in a row that count.
        progress: told how far it is.
    """
    owners = [(task.config.task, item) for task in tasks for item in task.items]
    looked_for, short = tables([Texts(item.id, list(texts_in(item.doc))) for _, item in owners], ngram_words, MIN_WORDS)
    if short:
        progress.note(f"contamination: {short} of {len(owners)} items have no text of {MIN_WORDS} words to look for")
    found: list[Hit] = []
    rows = 0
    for artifact in learned.values():
        for ids, texts in _columns(artifact):
            for row, spans in sorted(find(texts, looked_for, 1).items()):
                whole = texts[row].as_py()
                for span in spans:
                    task, item = owners[span.item]
                    said = whole[span.start : span.end]
                    found.append(Hit(task, item, artifact.ref, ids[row], span.ngrams, said))
            rows += len(ids)
            progress.update(rows, None, "documents looked through")
    return found


def _columns(artifact: Artifact) -> Iterator[tuple[list[str], pa.Array]]:
    """(ids, texts) of what an artifact teaches, batch by batch."""
    for batch in read_batches(artifact):
        ids = batch.column("id").to_pylist()
        if artifact.kind == "documents":
            yield ids, batch.column("text")
            continue
        names = [name for name in TAUGHT if name in batch.schema.names]
        rows = batch.select(names).to_pylist()
        yield ids, pa.array(["\n".join(texts_in(row)) for row in rows], pa.string())


def write(directory: Path, hits: Sequence[Hit]) -> dict[str, FileFacts]:
    """Write the table of hits."""
    with TableWriter(directory, HITS, prefix=PREFIX) as table:
        table.write_rows([hit.as_row() for hit in hits])
        return table.close()


def counts(tasks: Sequence[Loaded], hits: Sequence[Hit]) -> dict[str, int]:
    """By task: items that were found, and all of them together."""
    found = {(hit.task, hit.item.part, hit.item.number) for hit in hits}
    each = {f"{task.config.task}.contaminated": sum(one[0] == task.config.task for one in found) for task in tasks}
    return {**each, "contaminated": len(found)}


def named(hits: Sequence[Hit], most: int = 3) -> str:
    """Some of the items that were found, for a message."""
    names = list(dict.fromkeys(f"{hit.task} {hit.item.id} in {hit.source}" for hit in hits))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return json.dumps(names[:most], ensure_ascii=False)[1:-1] + more
