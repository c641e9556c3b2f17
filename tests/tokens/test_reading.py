from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmctl.config.errors import InputError, UsageError
from llmctl.config.tokens import PackConfig, TokenizeConfig
from llmctl.config.train import PretrainConfig
from llmctl.pipeline.execute import Outcome
from llmctl.store.artifact import Artifact
from llmctl.store.store import Store
from llmctl.tokens.order import rows_of_step
from llmctl.tokens.reading import Reading, pieces_of_step
from llmctl.tokens.rows import Rows

RunStage = Callable[..., Outcome]


@pytest.fixture
def tokens(run_stage: RunStage, write_documents: Any, documents: list[str]) -> Artifact:
    config = TokenizeConfig.model_validate({"train": {"vocab_size": 700}})
    return run_stage("tokenize", config, {"input": write_documents(documents)}).artifact


@pytest.fixture
def rows(run_stage: RunStage, tokens: Artifact) -> Artifact:
    return run_stage("pack", PackConfig(seq_len=64), {"input": tokens}).artifact


def test_a_step_is_what_training_sees(rows: Artifact, store: Store) -> None:
    pieces = list(pieces_of_step(Reading.of(rows, store, seed=3, batch_rows=5), 2))
    opened = Rows.open(rows, "train")
    wanted = rows_of_step(3, 2, 5, opened.count)
    assert list(dict.fromkeys(piece.row for piece in pieces)) == wanted.tolist()
    assert sum(piece.tokens for piece in pieces) == np.count_nonzero(opened.batch(wanted).documents >= 0)


def test_what_is_left_out_is_as_in_pretrain(rows: Artifact, store: Store) -> None:
    reading, defaults = Reading.of(rows, store), PretrainConfig.model_validate({})
    assert (reading.config.seed, reading.config.batch_rows) == (defaults.seed, defaults.batch_rows)


def test_a_run_says_itself_what_it_saw(run_stage: RunStage, rows: Artifact, store: Store) -> None:
    config = {"model": "nano", "steps": 1, "seed": 7, "batch_rows": 2, "device": "cpu", "threads": 1}
    made = run_stage("pretrain", PretrainConfig.model_validate(config), {"input": rows}).artifact
    reading = Reading.of(made, store, seed=1, batch_rows=1)
    assert (reading.rows.digest, reading.config.seed, reading.config.batch_rows) == (rows.digest, 7, 2)


def test_a_run_with_a_ramp_saw_fewer_rows_at_first(run_stage: RunStage, rows: Artifact, store: Store) -> None:
    config = {"model": "nano", "steps": 3, "seed": 7, "batch_rows": 4, "device": "cpu", "threads": 1}
    config |= {"batch_ramp": {"start_rows": 2, "steps": 2}}
    made = run_stage("pretrain", PretrainConfig.model_validate(config), {"input": rows}).artifact
    reading = Reading.of(made, store)
    seen = [list(dict.fromkeys(piece.row for piece in pieces_of_step(reading, step))) for step in range(3)]
    assert [len(step) for step in seen] == [2, 2, 4]
    count = Rows.open(rows, "train").count
    assert seen[0] + seen[1] + seen[2] == rows_of_step(7, 0, 8, count).tolist()
    assert made.manifest.totals["epochs"] == 8 / count


def test_other_artifacts_have_no_steps(tokens: Artifact, store: Store) -> None:
    with pytest.raises(InputError, match="is a tokens artifact"):
        Reading.of(tokens, store)


def test_ranks_see_their_parts_in_their_micro_batches(rows: Artifact, store: Store) -> None:
    reading = Reading.of(rows, store, seed=3, batch_rows=12, world_size=2)
    whole = list(pieces_of_step(reading, 4))
    opened = Rows.open(rows, "train")
    wanted = rows_of_step(3, 4, 12, opened.count).tolist()
    for rank in range(2):
        pieces = list(pieces_of_step(reading, 4, rank))
        assert pieces == [piece for piece in whole if piece.rank == rank]
        mine = wanted[6 * rank : 6 * rank + 6]
        assert list(dict.fromkeys(piece.row for piece in pieces)) == mine
        for piece in pieces:
            assert piece.micro_batch == mine.index(piece.row) // 4  # four rows a forward pass, where nothing is said


def test_ranks_that_share_rows_see_the_same(rows: Artifact, store: Store) -> None:
    alone = Reading.of(rows, store, seed=3, batch_rows=12, world_size=2)
    config = alone.config.model_copy(update={"sequence_parallel": 2})
    shared = Reading(alone.rows, alone.tokenizer, config, world_size=4)
    for rank in range(4):
        of_pair = [dataclasses.replace(piece, rank=rank) for piece in pieces_of_step(alone, 4, rank // 2)]
        assert list(pieces_of_step(shared, 4, rank)) == of_pair
    firsts = [dataclasses.replace(piece, rank=2 * piece.rank) for piece in pieces_of_step(alone, 4)]
    assert list(pieces_of_step(shared, 4)) == firsts


def test_the_text_is_that_of_the_document(rows: Artifact, store: Store, documents: list[str]) -> None:
    for piece in pieces_of_step(Reading.of(rows, store, seed=0, batch_rows=30), 0):
        assert piece.text.strip("\ufffd") in documents[int(piece.document.partition("/")[2])]


def test_impossible_ranks_are_refused(rows: Artifact, store: Store) -> None:
    with pytest.raises(UsageError, match="cannot be dealt to 3 ranks"):
        Reading.of(rows, store, batch_rows=16, world_size=3)
    with pytest.raises(UsageError, match="no rank 2: the run had 2"):
        list(pieces_of_step(Reading.of(rows, store, world_size=2), 0, rank=2))
