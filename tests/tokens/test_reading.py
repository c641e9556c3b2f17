from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmctl.config.errors import InputError
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
    assert (reading.seed, reading.batch_rows) == (defaults.seed, defaults.batch_rows)


def test_a_run_says_itself_what_it_saw(run_stage: RunStage, rows: Artifact, store: Store) -> None:
    config = {"model": "nano", "steps": 1, "seed": 7, "batch_rows": 2, "device": "cpu", "threads": 1}
    made = run_stage("pretrain", PretrainConfig.model_validate(config), {"input": rows}).artifact
    reading = Reading.of(made, store, seed=1, batch_rows=1)
    assert (reading.rows.digest, reading.seed, reading.batch_rows) == (rows.digest, 7, 2)


def test_other_artifacts_have_no_steps(tokens: Artifact, store: Store) -> None:
    with pytest.raises(InputError, match="is a tokens artifact"):
        Reading.of(tokens, store)
