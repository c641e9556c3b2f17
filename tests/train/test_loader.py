"""The loader: the same rows in the same order however they are dealt, from any step, and each token once an epoch."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.config.batches import Batches
from llmctl.config.errors import UsageError
from llmctl.config.train import PretrainConfig
from llmctl.tokens.batch import Batch
from llmctl.tokens.fit import fit
from llmctl.tokens.mixture import PARTS, Mixture, Stage
from llmctl.tokens.order import rows_of_step
from llmctl.tokens.rows import Rows
from llmctl.train.loader import Loader, Plan

PAD = 0


def rows_of(lengths: list[int], seq_len: int, mixture: Mixture | None = None) -> Rows:
    """Packed documents whose tokens are all different, from 1 up in the order of the documents."""
    layout = fit(np.array(lengths), seq_len)
    before = np.cumsum(lengths) - lengths
    tokens = np.full((layout.rows, seq_len), PAD, dtype=np.uint32)
    for row in range(layout.rows):
        at = 0
        for piece in range(layout.first[row], layout.first[row + 1]):
            begin = 1 + before[layout.document[piece]] + layout.start[piece]
            length = layout.length[piece]
            tokens[row, at : at + length] = np.arange(begin, begin + length)
            at += length
    slices = np.stack((layout.document, layout.start, layout.length), axis=1).astype(np.int32)
    return Rows(tokens, layout.first, slices, PAD, mixture)


def stream(rows: Rows, plans: list[Plan], steps: range) -> list[list[Batch]]:
    """For each step the micro-batches of all ranks, in the order of the ranks."""
    loaders = [Loader(rows, plan) for plan in plans]
    found = [[batch for loader in loaders for batch in loader.take(step)] for step in steps]
    for loader in loaders:
        loader.__exit__(None, None, None)
    return found


def plans(batch_rows: int, world_size: int, micro_rows: int, steps: int, seed: int = 5) -> list[Plan]:
    return [Plan(seed, steps, Batches(batch_rows), rank, world_size, micro_rows) for rank in range(world_size)]


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=60),
    seq_len=st.integers(4, 24),
    world_size=st.sampled_from([1, 2, 3, 4]),
    per_rank=st.integers(1, 5),
    micro_rows=st.integers(1, 5),
)
def test_every_token_comes_once_in_each_epoch(
    lengths: list[int], seq_len: int, world_size: int, per_rank: int, micro_rows: int
) -> None:
    rows = rows_of(lengths, seq_len)
    batch_rows = world_size * per_rank
    steps = -(-2 * rows.count // batch_rows)
    batches = stream(rows, plans(batch_rows, world_size, micro_rows, steps), range(steps))
    seen = np.concatenate([batch.tokens for step in batches for batch in step])
    documents = np.concatenate([batch.documents for step in batches for batch in step])
    for epoch in range(2):
        part = slice(epoch * rows.count, (epoch + 1) * rows.count)
        ids = seen[part][documents[part] >= 0]
        assert sorted(ids.tolist()) == list(range(1, sum(lengths) + 1))
        assert (seen[part][documents[part] < 0] == PAD).all()


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(2, 60), min_size=5, max_size=40),
    world_size=st.sampled_from([1, 2, 3, 6]),
    micro_rows=st.integers(1, 6),
    start=st.integers(0, 7),
    mixed=st.booleans(),
)
def test_ranks_micro_batches_and_a_restart_change_nothing(
    lengths: list[int], world_size: int, micro_rows: int, start: int, mixed: bool
) -> None:
    rows = rows_of(lengths, 16)
    if mixed and rows.count > 1:
        half = rows.count // 2
        stages = (Stage(20, (PARTS // 4, PARTS - PARTS // 4)), Stage(None, (PARTS, 0)))
        rows.mixture = Mixture((half, rows.count - half), stages)
    whole = stream(rows, plans(6, 1, 6, 8), range(8))
    dealt = stream(rows, plans(6, world_size, micro_rows, 8), range(start, 8))
    for (wanted,), parts in zip(whole[start:], dealt, strict=True):
        for name in ("tokens", "positions", "documents", "labels"):
            assert (np.concatenate([getattr(part, name) for part in parts]) == getattr(wanted, name)).all()
        assert sum(part.targets for part in parts) == wanted.targets


def test_micro_batches_are_no_larger_than_asked_for() -> None:
    rows = rows_of([5] * 40, 16)
    (parts,) = stream(rows, plans(14, 2, 3, 1), range(1))
    assert [part.rows for part in parts] == [3, 3, 1, 3, 3, 1]


def test_a_step_may_be_taken_out_of_turn() -> None:
    rows = rows_of([5] * 40, 16)
    with Loader(rows, plans(4, 1, 4, 100)[0]) as loader:
        for step in (0, 1, 7, 3, 4, 99):
            (batch,) = loader.take(step)
            assert (batch.tokens == rows.batch(rows_of_step(5, step, 4, rows.count)).tokens).all()


def test_the_next_step_is_read_while_this_one_computes() -> None:
    read: list[str] = []

    class Watched(Rows):
        def batch(self, indices: np.ndarray) -> Batch:
            read.append(threading.current_thread().name)
            return super().batch(indices)

    plain = rows_of([5] * 40, 16)
    watched = Watched(plain._tokens, plain.first, plain.slices, PAD)
    with Loader(watched, plans(4, 1, 4, 3)[0]) as loader:
        for step in range(3):
            loader.take(step)
    assert len(read) == 3  # nothing past the last step
    assert [name.startswith("rows") for name in read] == [False, True, True]


def test_rows_that_cannot_be_dealt_are_refused() -> None:
    config = PretrainConfig.model_validate({"batch_rows": 6})
    with pytest.raises(UsageError, match="is not a multiple of the 4 ranks"):
        Plan.of(config, 10, 0, 4)
