"""Chats or packed rows as a teacher and its student read them: rows to learn from, rows held out, and their units.

A unit is what a teacher's figures are kept by: a chat, or a packed row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.config.errors import InputError, UsageError
from llmctl.config.train import Learned, Overlong
from llmctl.data.split import is_heldout
from llmctl.objectives.chats import PackedChats, Sides, read_sides
from llmctl.objectives.start import fill_id
from llmctl.pipeline.job import Job
from llmctl.store.artifact import Artifact
from llmctl.tokens.batch import IGNORE
from llmctl.tokens.rows import Rows
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.train.loader import RowSource

COUNTED_ROWS = 256  # read at a time where targets are counted


@dataclass(frozen=True)
class Side:
    """Rows that are learned from, or rows that are held out.

    Attributes:
        rows: packed rows, or packed chats.
        numbers: int64, of each chat among all chats, or of each row among all rows.
    """

    rows: RowSource
    numbers: NDArray[np.int64]

    def units_of(self, row: int) -> NDArray[np.int64]:
        """The numbers of what a row holds, in the order of its targets."""
        return self.numbers[self.rows.chats_of(row)] if isinstance(self.rows, PackedChats) else self.numbers[[row]]

    def counts(self) -> NDArray[np.int64]:
        """How many targets each of `numbers` has."""
        if isinstance(self.rows, PackedChats):
            return np.array([np.count_nonzero(chat.labels != IGNORE) for chat in self.rows.chats], dtype=np.int64)
        parts = [
            np.arange(at, min(at + COUNTED_ROWS, self.rows.count)) for at in range(0, self.rows.count, COUNTED_ROWS)
        ]
        found = [np.count_nonzero(self.rows.batch(part).labels != IGNORE, axis=1) for part in parts]
        return np.concatenate([np.zeros(0, dtype=np.int64), *found])


@dataclass(frozen=True)
class Texts:
    """What is read.

    Attributes:
        role: `chats` or `rows`.
        kept: to learn from.
        held: for the held-out figures.
        seq_len: of a row.
        overlong: how many chats did not fit.
        heldout_fraction: below it in `position` of its id no document is learned from; None where that is not known.
    """

    role: str
    kept: Side
    held: Side
    seq_len: int
    overlong: int = 0
    heldout_fraction: float | None = None

    @property
    def units(self) -> int:
        """How many there are on both sides."""
        return self.kept.numbers.size + self.held.numbers.size

    def counts(self) -> NDArray[np.int64]:
        """How many targets each unit has, by its number."""
        counts = np.zeros(self.units, dtype=np.int64)
        for side in (self.kept, self.held):
            counts[side.numbers] = side.counts()
        return counts


def role_of(job: Job[Any]) -> str:
    """Which of `chats` and `rows` is given.

    Raises:
        InputError: neither.
        UsageError: both.
    """
    given = [role for role in ("chats", "rows") if role in job.inputs]
    if len(given) > 1:
        raise UsageError("--chats and --rows are both given", hint="a run learns from one of them")
    if not given:
        raise InputError(
            f"the rows behind {job.artifact().ref} are not in this store", hint="give --rows REF or --chats REF"
        )
    return given[0]


def read_texts(
    job: Job[Any],
    tokenizer: Tokenizer,
    max_tokens: int,
    *,
    overlong: Overlong,
    learn: Learned,
    fraction: float = 0.0,
) -> Texts:
    """The chats or rows among the job's inputs.

    Args:
        job: whose `input` is the teacher.
        tokenizer: the teacher's.
        max_tokens: longest text that fits both models.
        overlong: what becomes of longer chats.
        learn: what of a chat is learned.
        fraction: share to hold out of chats that are not split yet.

    Raises:
        InputError: a chat cannot be learned from, rows are of another tokenizer, or nothing is left to learn from.
        UsageError: chats and rows are both given, or rows are too long.
    """
    if role_of(job) == "chats":
        return _chats(job, tokenizer, max_tokens, overlong, learn, fraction)
    return _rows(job, max_tokens)


def _chats(
    job: Job[Any], tokenizer: Tokenizer, max_tokens: int, overlong: Overlong, learn: Learned, fraction: float
) -> Texts:
    """A chat's number is its place in the file, or in the artifact with the held-out split behind the other.

    It does not depend on `fraction`, so that another one finds the same figures of a teacher.
    """
    given = job.inputs["chats"]
    found = read_sides(given, tokenizer, max_tokens, 0.0, overlong, learn)
    return packed_sides(found, max_tokens, fill_id(job.artifact(), tokenizer), fraction)


def packed_sides(found: Sides, max_tokens: int, filling: int, fraction: float) -> Texts:
    """Chats in rows of `max_tokens`, filled with the id `filling`; split here by `fraction` where they are not yet.

    Raises:
        InputError: all are held out.
    """
    every = [*found.kept, *found.held]
    held = np.arange(len(every)) >= len(found.kept)
    if found.heldout_fraction is None:
        held = np.array([is_heldout(chat.document, fraction) for chat in every])
    if held.all():
        raise InputError(f"all {len(every)} chats are held out", hint="lower heldout_fraction, or give more chats")
    kept, behind = (
        Side(PackedChats([every[at] for at in numbers], max_tokens, filling), numbers)
        for numbers in (np.flatnonzero(~held), np.flatnonzero(held))
    )
    return Texts("chats", kept, behind, max_tokens, len(found.overlong), found.heldout_fraction)


def _rows(job: Job[Any], max_tokens: int) -> Texts:
    given, teacher = job.artifact("rows"), job.artifact()
    _check_same_ids(given, teacher)
    rows, held = Rows.open(given, "train"), Rows.open(given, "heldout")
    if rows.count == 0:
        raise InputError(f"{given.ref} holds no training rows", hint="lower heldout_fraction of pack, or add documents")
    if rows.seq_len > max_tokens:
        raise UsageError(
            f"rows of {rows.seq_len} tokens are longer than the {max_tokens} that both models read",
            hint=f"pack with --seq-len {max_tokens}",
        )
    kept, behind = np.arange(rows.count), rows.count + np.arange(held.count)
    return Texts(
        "rows", Side(rows, kept), Side(held, behind), rows.seq_len, 0, given.manifest.semantic.get("heldout_fraction")
    )


def _check_same_ids(rows: Artifact, teacher: Artifact) -> None:
    theirs, ours = (given.manifest.semantic.get("tokenizer") for given in (rows, teacher))
    if theirs != ours:
        raise InputError(
            f"{rows.ref} and {teacher.ref} differ in their tokenizer: {theirs} and {ours}",
            hint="give --rows that were packed with the teacher's tokenizer, or --chats",
        )
