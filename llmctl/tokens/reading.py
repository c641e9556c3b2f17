"""What a training step saw, as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from llmctl.store.artifact import Artifact
from llmctl.tokens.order import rows_of_step
from llmctl.tokens.rows import Rows
from llmctl.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Piece:
    """One document, or a part of it, in a row.

    Attributes:
        row: number of the row in the training split.
        document: the document's id.
        start: first token of the piece, within the document.
        tokens: length of the piece.
        text: the piece decoded; a character cut at its edge shows as U+FFFD.
    """

    row: int
    document: str
    start: int
    tokens: int
    text: str


def pieces_of_step(rows: Artifact, tokenizer: Tokenizer, *, seed: int, step: int, batch_rows: int) -> Iterator[Piece]:
    """Every piece of the rows that step `step` (from 0) of a run with this seed and batch sees, in order."""
    opened = Rows.open(rows, "train")
    ids = pq.read_table(rows.file("train.documents.parquet"), columns=["id"]).column("id")
    for row in rows_of_step(seed, step, batch_rows, opened.count).tolist():
        tokens = opened.batch(np.array([row])).tokens[0]
        place = 0
        for document, start, length in opened.slices_of(row).tolist():
            text = tokenizer.decode(tokens[place : place + length].tolist())
            yield Piece(row, ids[document].as_py(), start, length, text)
            place += length
