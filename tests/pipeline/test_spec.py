from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmctl.config.train import PretrainConfig
from llmctl.pipeline import spec
from llmctl.pipeline.job import FileFacts, Job, Product, Silent
from llmctl.store.artifact import FileInput
from llmctl.store.store import Store
from tests.store.test_store import commit


def test_a_job_survives_json_with_all_its_inputs(store: Store, tmp_path: Path) -> None:
    config = PretrainConfig.model_validate({"steps": 5, "optimizer": {"lr": 1e-4}})
    inputs = {"input": commit(store, "web", "01A"), "chats": FileInput(tmp_path / "chats.jsonl", "sha256:12", "chats")}
    job: Job[Any] = Job(
        config, inputs, tmp_path / "data", tmp_path / "work", tmp_path / "metrics", Silent(), nested=None
    )
    rebuilt, entry = spec.rebuild(json.loads(json.dumps(spec.describe(job, "module:function"))), leads=False)
    assert entry == "module:function"
    assert (rebuilt.config, rebuilt.out, rebuilt.work) == (job.config, job.out, job.work)
    assert rebuilt.metrics_file == job.metrics_file
    assert rebuilt.inputs == inputs
    with pytest.raises(RuntimeError, match="cannot run the stage clean"):
        rebuilt.nested("clean", config, {})


def test_a_product_survives_json() -> None:
    product = Product("s/1", {"a": 1}, {"loss": 0.5}, {"f": FileFacts(rows=3)}, ("MIT",))
    assert spec.product_of(json.loads(json.dumps(spec.describe_product(product)))) == product
