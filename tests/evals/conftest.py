"""A tiny checkpoint and a real one, and a store to evaluate them into."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmctl.store.artifact import Artifact
from llmctl.store.manifest import Manifest, Producer, RunInfo
from llmctl.store.store import Store
from tests.evals.evaluations import Evals
from tests.evals.tiny import write_checkpoint
from tests.smollm2 import imported_smollm2


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("run")
    write_checkpoint(folder, seed=5, context=128).rename(folder / "data")
    producer = Producer(command="t", op_version=1, llmctl="0", argv=[], config={}, action_key="t")
    manifest = Manifest(
        kind="checkpoint", schema="t", digest="sha256:" + "5" * 64, files=[], totals={}, semantic={}, producer=producer,
        inputs={}, run=RunInfo(id="t", started="", finished="", host=""), license=[],
    )  # fmt: skip
    return Artifact(folder, manifest, "tested@v1")


@pytest.fixture
def evals(tmp_path: Path, checkpoint: Artifact) -> Evals:
    return Evals(tmp_path / "artifacts", checkpoint)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """SmolLM2-135M-Instruct as llmctl imports it."""
    home = imported_smollm2(tmp_path_factory.mktemp("smollm2"))
    return Store.open(home / "artifacts").resolve("smol")
