"""What a training step saw, as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from llmctl.config.errors import InputError, UsageError
from llmctl.config.train import TrainConfig, micro_rows
from llmctl.data.tables import read_parquet
from llmctl.store.artifact import Artifact
from llmctl.store.store import Store
from llmctl.tokens.order import part_of_rank
from llmctl.tokens.rows import Rows
from llmctl.tokens.tokenizer import Tokenizer

RUN_FIELDS = ("seed", "batch_rows", "batch_ramp", "micro_batch_rows", "nproc", "zero", "sequence_parallel")


@dataclass(frozen=True)
class Piece:
    """One document, or a part of it, in a row.

    Attributes:
        row: number of the row in the training split.
        document: the document's id.
        start: first token of the piece, within the document.
        tokens: length of the piece.
        text: the piece decoded; a character cut at its edge shows as U+FFFD.
        rank: which rank computed the row; of ranks that shared it, the one asked for or the first.
        micro_batch: in which of its forward passes, from 0.
    """

    row: int
    document: str
    start: int
    tokens: int
    text: str
    rank: int
    micro_batch: int


@dataclass(frozen=True)
class Reading:
    """Packed rows and the order in which a run sees them.

    Attributes:
        rows: what is read.
        tokenizer: of their tokens.
        config: of the run: its seed, its batch, how rows are dealt.
        world_size: ranks of the run.
    """

    rows: Artifact
    tokenizer: Tokenizer
    config: TrainConfig
    world_size: int

    @classmethod
    def of(
        cls,
        artifact: Artifact,
        store: Store,
        seed: int | None = None,
        batch_rows: int | None = None,
        world_size: int | None = None,
    ) -> Reading:
        """What a run of pretrain saw, as its manifest says; or packed rows with a seed and a batch, where given.

        A run under a launcher does not know its `nproc`: its world size is to be given.

        Raises:
            InputError: the artifact is neither, or what it was made from is no longer in the store.
            UsageError: the ranks cannot share a step's rows evenly.
        """
        manifest = artifact.manifest
        rows = artifact
        given = {"seed": seed, "batch_rows": batch_rows}
        if manifest.producer.command == "pretrain":
            rows = store.find(manifest.inputs["input"].digest)
            made = manifest.producer.config
            given = {name: made[name] for name in RUN_FIELDS if name in made}
        if rows.kind != "rows":
            hint = "give packed rows, or what pretrain made from them"
            raise InputError(f"{artifact.ref} is a {rows.kind} artifact", hint=hint)
        config = TrainConfig.model_validate({name: value for name, value in given.items() if value is not None})
        ranks = world_size or config.nproc
        if ranks % config.sequence_parallel or config.batch_rows % (ranks // config.sequence_parallel):
            hint = "give the number of ranks that the run had"
            raise UsageError(f"{config.batch_rows} rows of a step cannot be dealt to {ranks} ranks", hint=hint)
        tokenizer = Tokenizer.open(store.find(rows.manifest.semantic["tokenizer"]).data)
        return cls(rows, tokenizer, config, ranks)


def pieces_of_step(reading: Reading, step: int, rank: int | None = None) -> Iterator[Piece]:
    """Every piece of the rows that step `step` (from 0) sees, in order; of one rank, or of all.

    Raises:
        UsageError: the run had no such rank.
    """
    if rank is not None and rank >= reading.world_size:
        raise UsageError(f"there is no rank {rank}: the run had {reading.world_size}", hint="ranks count from 0")
    rows, tokenizer, config = reading.rows, reading.tokenizer, reading.config
    opened = Rows.open(rows, "train")
    table = read_parquet(rows.file("train.documents.parquet"), ["id"])
    ids = [name for batch in table for name in batch.column(0).to_pylist()]
    spans = config.batches.spans(step)
    seen = np.concatenate([opened.rows_of_step(config.seed, number, size) for number, size in spans])
    sharing = config.sequence_parallel  # so many ranks see the same rows
    groups = reading.world_size // sharing
    micro = micro_rows(config, groups)
    fim = rows.manifest.semantic.get("fim", {"marks": ()})
    marks = dict(zip(fim["marks"], ("<PRE>", "<SUF>", "<MID>"), strict=False))
    for one in range(0, reading.world_size, sharing) if rank is None else (rank,):
        for number, row in enumerate(part_of_rank(seen, one // sharing, groups).tolist()):
            tokens = opened.batch(np.array([row])).tokens[0]
            place = 0
            for document, start, length in opened.slices_of(row).tolist():
                text = _text(tokenizer, tokens[place : place + length].tolist(), marks)
                yield Piece(row, ids[document], start, length, text, one, number // micro)
                place += length


def _text(tokenizer: Tokenizer, ids: list[int], marks: Mapping[int, str]) -> str:
    """The text of ids, in which the marks of fill-in-the-middle can be seen."""
    places = [place for place, index in enumerate(ids) if index in marks]
    starts, ends = [0, *(place + 1 for place in places)], [*places, len(ids)]
    shown = ["", *(marks[ids[place]] for place in places)]
    texts = (tokenizer.decode(ids[start:end]) for start, end in zip(starts, ends, strict=True))
    return "".join(mark + text for mark, text in zip(shown, texts, strict=True))
