"""A real teacher that answers `b a.` to `a b`, and prompts for it."""

import json

import pyarrow.parquet as pq
import pytest

from llmctl.config.synth import SynthConfig
from llmctl.config.train import PretrainConfig, SftConfig
from llmctl.store.artifact import FileInput
from tests.objectives.conftest import NANO, QUICK

NUMBERS = ["zero", "one", "two", "three", "four"]
ALL = [(a, b) for a in NUMBERS for b in NUMBERS]


def synth(**fields):
    return SynthConfig.model_validate({"device": "cpu", "max_new_tokens": 12, **fields})


@pytest.fixture(scope="session")
def teacher(stages, rows, chats):
    """Most of its answers are right; its context holds a few turns."""
    roomy = {**QUICK, "model": {**NANO, "context": 256}, "steps": 30}
    checkpoint = stages("pretrain", PretrainConfig.model_validate(roomy), input=rows)
    config = {**QUICK, "epochs": 40, "max_tokens": 48, "optimizer": {"lr": 6e-3}, "heldout_fraction": 0}
    return stages("sft", SftConfig.model_validate(config), input=checkpoint, chats=chats)


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    rows = [{"id": f"p/{n}", "prompt": f"{a} {b}", "answer": f"{b} {a}.", "n": n} for n, (a, b) in enumerate(ALL)]
    return written(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows, "prompts")


def written(path, rows, kind):
    """Rows as a plain file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileInput.of(path, kind)


def table(made):
    return [row for file in made.files(suffix=".parquet") for row in pq.read_table(file).to_pylist()]


def dropped(made, step=""):
    """How many of a step's went; of the answers where none is named."""
    head = f"dropped.{step}." if step else "dropped."
    found = {name.removeprefix(head): n for name, n in made.manifest.totals.items() if name.startswith(head)}
    return sum(n for name, n in found.items() if "." not in name)
