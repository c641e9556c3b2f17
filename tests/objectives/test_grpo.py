"""The stage `grpo` on a real checkpoint: what is learned, what is kept, what is refused."""

import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmctl.config.grpo import GrpoConfig
from llmctl.config.tokens import PackConfig, TokenizeConfig
from llmctl.config.train import PretrainConfig
from llmctl.store.artifact import FileInput

from .conftest import NANO, QUICK, writer_of

ALONE = {name: value for name, value in QUICK.items() if name not in ("batch_rows", "eval_every_steps")}
LEARNS = {
    "group": 16,
    "prompts_per_rollout": 5,
    "batch_rows": 40,
    "passes": 2,
    "max_new_tokens": 4,
    "max_tokens": 32,
    "optimizer": {"lr": 3e-3, "betas": [0.9, 0.95]},
}


def grpo(**fields):
    return GrpoConfig.model_validate({**ALONE, **LEARNS, **fields})


def metrics_of(made):
    return [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def guesser(stages, tmp_path_factory):
    """A model that answers a digit below five with any digit below five."""
    rng = random.Random(3)
    texts = [f"{rng.randrange(5)}:{rng.randrange(5)}" for _ in range(3000)]
    path = tmp_path_factory.mktemp("digits") / "digits.parquet"
    columns = {"id": [f"digits/{n}" for n in range(len(texts))], "text": texts, "source": ["digits"] * len(texts)}
    pq.write_table(pa.table({key: pa.array(values, pa.string()) for key, values in columns.items()}), path)
    config = TokenizeConfig.model_validate({"train": {"vocab_size": 268}})
    tokens = stages("tokenize", config, input=FileInput.of(path, "documents"))
    rows = stages("pack", PackConfig(seq_len=32), input=tokens)
    given = {**QUICK, "model": NANO, "steps": 60, "batch_rows": 16, "optimizer": {"lr": 1e-2}}
    return stages("pretrain", PretrainConfig.model_validate(given), input=rows)


@pytest.fixture(scope="session")
def write_prompts(tmp_path_factory):
    return writer_of("prompts", tmp_path_factory)


@pytest.fixture(scope="session")
def copying(write_prompts):
    return write_prompts([{"id": f"copy/{n}", "prompt": f"{n}:", "answer": str(n)} for n in range(5)])


def test_it_learns_to_copy(stages, guesser, copying):
    made = stages("grpo", grpo(steps=140), input=guesser, prompts=copying)
    rows = [row for row in metrics_of(made) if "reward" in row]
    assert len(rows) == 140 / 4  # two passes of two steps
    rewards, entropies = ([row[name] for row in rows] for name in ("reward", "entropy"))
    assert np.mean(rewards[:3]) < 0.3
    assert np.mean(rewards[-3:]) > 0.9
    assert np.mean(entropies[-3:]) < np.mean(entropies[:3])
    assert all(row["logprob_gap"] < 1e-4 for row in rows)
    assert 0 < made.manifest.totals["logprob_gap"] < 1e-4
