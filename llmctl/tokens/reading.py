"""What a training step saw, as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from llmctl.config.errors import InputError
from llmctl.config.train import TrainConfig
from llmctl.data.tables import read_parquet
from llmctl.store.artifact import Artifact
from llmctl.store.store import Store
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


@dataclass(frozen=True)
class Reading:
    """Packed rows and the order in which a run sees them.

    Attributes:
        rows: what is read.
        tokenizer: of their tokens.
        seed: of the run.
        batch_rows: rows of one step.
    """

    rows: Artifact
    tokenizer: Tokenizer
    seed: int
    batch_rows: int

    @classmethod
    def of(cls, artifact: Artifact, store: Store, seed: int | None = None, batch_rows: int | None = None) -> Reading:
        """What a run of pretrain saw, as its manifest says; or packed rows with a seed and a batch, where given.

        Raises:
            InputError: the artifact is neither, or what it was made from is no longer in the store.
        """
        manifest = artifact.manifest
        rows = artifact
        if manifest.producer.command == "pretrain":
            rows = store.find(manifest.inputs["input"].digest)
            seed, batch_rows = manifest.producer.config["seed"], manifest.producer.config["batch_rows"]
        if rows.kind != "rows":
            hint = "give packed rows, or what pretrain made from them"
            raise InputError(f"{artifact.ref} is a {rows.kind} artifact", hint=hint)
        defaults = TrainConfig.model_validate({})
        return cls(
            rows,
            Tokenizer.open(store.find(rows.manifest.semantic["tokenizer"]).data),
            defaults.seed if seed is None else seed,
            defaults.batch_rows if batch_rows is None else batch_rows,
        )


def pieces_of_step(reading: Reading, step: int) -> Iterator[Piece]:
    """Every piece of the rows that step `step` (from 0) sees, in order."""
    rows, tokenizer = reading.rows, reading.tokenizer
    opened = Rows.open(rows, "train")
    table = read_parquet(rows.file("train.documents.parquet"), ["id"])
    ids = [name for batch in table for name in batch.column(0).to_pylist()]
    for row in rows_of_step(reading.seed, step, reading.batch_rows, opened.count).tolist():
        tokens = opened.batch(np.array([row])).tokens[0]
        place = 0
        for document, start, length in opened.slices_of(row).tolist():
            text = tokenizer.decode(tokens[place : place + length].tolist())
            yield Piece(row, ids[document], start, length, text)
            place += length
