"""lm-evaluation-harness over a checkpoint that llmctl wrote, opened by transformers; everything from local rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Rows = Sequence[Mapping[str, Any]]


def harness_model(checkpoint: Path, batch_size: int = 4) -> Any:
    """The harness's own adapter over the checkpoint in float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    return huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device="cpu")


def harness_task(config: str | Mapping[str, Any], splits: Mapping[str, Rows]) -> Any:
    """A task of the harness, by its file or as a mapping, over rows given by split."""
    import datasets
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    if isinstance(config, str):
        config = load_yaml(Path(lm_eval.__file__).parent / "tasks" / config)
    local = datasets.DatasetDict({name: datasets.Dataset.from_list(list(rows)) for name, rows in splits.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", lambda *_, **__: local)
        return ConfigurableTask(config={"dataset_path": "json", **config})


def asked(task: Any, shots: int | None = None) -> list[tuple[Any, ...]]:
    """The arguments of every request that a task makes, in order."""
    if shots is not None:
        task._config.num_fewshot = shots
    task.set_fewshot_seed(1234)
    task.build_all_requests()
    return [instance.args for instance in task.instances]


def evaluated(model: Any, task: Any, bootstrap: int = 100_000) -> Any:
    """Results and samples of the harness."""
    from lm_eval.evaluator import evaluate

    task.set_fewshot_seed(1234)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISABLE_MULTIPROC", "1")
        return evaluate(model, {"tasks": {task.config.task: task}}, bootstrap_iters=bootstrap)
