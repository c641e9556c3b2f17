"""Figures, errors and every log-likelihood against lm-evaluation-harness over the same checkpoint."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from llmctl.config.evals import EvalConfig
from llmctl.evals.stage import run
from llmctl.pipeline.job import Job, Silent
from llmctl.store.artifact import Artifact, FileInput
from llmctl.store.manifest import Manifest, Producer, RunInfo
from tests.conftest import DATA
from tests.evals.harness import evaluated, harness_model, harness_task
from tests.evals.tiny import file_of, text, write_checkpoint

CHOOSING = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{query}}",
    "doc_to_target": "gold",
    "doc_to_choice": "choices",
    "validation_split": "test",
    "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")],
}
TASKS: dict[str, dict[str, Any]] = {
    "piqa": {**CHOOSING, "task": "piqa", "doc_to_text": "{{query}}Answer:"},
    "copa": {**CHOOSING, "task": "copa", "num_fewshot": 2},
    "lambada": {
        "task": "lambada", "output_type": "loglikelihood", "test_split": "test", "doc_to_text": "{{context}}",
        "doc_to_target": "{{' ' ~ continuation}}", "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
    "gsm8k": {
        "task": "gsm8k", "output_type": "generate_until", "training_split": "train", "fewshot_split": "train",
        "test_split": "test", "num_fewshot": 3, "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "metric_list": [
            {"metric": "exact_match", "ignore_case": True, "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"]}
        ],
        "generation_kwargs": {
            "until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 48
        },
        "filter_list": [
            {"name": "strict-match", "filter": [
                {"function": "regex", "regex_pattern": "#### (\\-?[0-9\\.\\,]+)"}, {"function": "take_first"}
            ]},
            {"name": "flexible-extract", "filter": [
                {"function": "regex", "group_select": -1, "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)"},
                {"function": "take_first"},
            ]},
        ],
    },
    "rolling": {
        "task": "rolling", "output_type": "loglikelihood_rolling", "test_split": "test", "doc_to_target": "{{text}}",
        "doc_to_text": "",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    },
}  # fmt: skip
FILES = {
    "piqa": "piqa/piqa.jsonl",
    "copa": "copa/copa.jsonl",
    "lambada": "lambada/lambada_openai.jsonl",
    "gsm8k": "gsm8k/test.jsonl",
    "gsm8k.train": "gsm8k/train.jsonl",
}


def generated(name: str, number: int) -> dict[str, Any]:
    """An item of the same schema as the files'."""
    if name.startswith("gsm8k"):
        return {"question": text(number, 8), "answer": f"{text(number + 5, 6)}\n#### {number}"}
    if name == "lambada":
        return {"context": text(number, 15)[:-1], "continuation": text(number + 99, 1)[:-1]}
    if name == "rolling":  # some in several windows of the context
        return {"text": text(number, 30 + 60 * (number % 4))}
    return {"query": text(number, 6), "choices": [text(7 * number + n, 1 + n) for n in range(3)], "gold": number % 3}


def evaluation(checkpoint: Path, directory: Path, task: Mapping[str, Any], data: Mapping[str, FileInput]) -> Any:
    """What llmctl makes of a task: (results, samples)."""
    (directory / "out").mkdir(parents=True)
    producer = Producer(command="t", op_version=1, llmctl="0", argv=[], config={}, action_key="t")
    manifest = Manifest(
        kind="checkpoint", schema="t", digest="sha256:" + "0" * 64, files=[], totals={}, semantic={},
        producer=producer, inputs={}, run=RunInfo(id="t", started="", finished="", host=""), license=[],
    )  # fmt: skip
    artifact = Artifact(checkpoint.parent, manifest, "tested")
    assert artifact.data == checkpoint
    job: Job[EvalConfig] = Job(
        config=EvalConfig.model_validate({"tasks": [task], "device": "cpu", "overlong": "truncate"}),
        inputs={"input": artifact, **{f"data.{name}": given for name, given in data.items()}},
        out=directory / "out", work=directory / "work", metrics_file=directory / "metrics.jsonl",
        progress=Silent(), nested=lambda *_: artifact,
    )  # fmt: skip
    run(job)
    results = json.loads((directory / "out" / "results.json").read_text())
    return results["tasks"], pq.read_table(directory / "out" / "samples-00000.parquet").to_pylist()


def compare(name: str, ours: Any, samples: Sequence[Mapping[str, Any]], theirs: Any) -> None:
    """Every prompt, log-likelihood or text, figure and error."""
    by_document: dict[int, Any] = {}
    for sample in theirs["samples"][name]:
        by_document.setdefault(sample["doc_id"], sample)
    assert len(samples) == len(by_document)
    for sample in samples:
        expected = by_document[sample["number"]]
        arguments = list(expected["arguments"])
        if name == "rolling":
            whole = float(expected["resps"][0][0])
            assert sample["log_likelihoods"] == pytest.approx([whole], abs=1e-3 * sample["tokens"])
            continue
        assert sample["prompt"] == arguments[0][0]
        if name == "gsm8k":
            assert sample["texts"] == expected["resps"][0]
            continue
        assert sample["choices"] == [one[1] for one in arguments]
        likely = [float(one[0][0]) for one in expected["resps"]]
        assert sample["log_likelihoods"] == pytest.approx(likely, abs=1e-3)
        assert sample["greedy"] == [str(one[0][1]) == "True" for one in expected["resps"]]
    for key, value in theirs["results"][name].items():
        metric, _, way = key.partition(",")
        if not way or metric in ("alias", "name", "sample_len"):
            continue
        label = metric.removesuffix("_stderr") + ("" if way == "none" else f",{way}")
        figure = ours[name][label]["stderr" if metric.endswith("_stderr") else "value"]
        if value == "N/A":
            assert figure is None
        else:
            exact = metric.startswith(("acc", "exact"))
            assert figure == pytest.approx(float(value), abs=1e-12 if exact else 1e-9, rel=0 if exact else 2e-4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, so that no choice is much likelier than another."""
    folder = tmp_path_factory.mktemp("parity")
    made = write_checkpoint(folder, seed=3, context=256)
    made.rename(folder / "data")
    return folder / "data"


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> Any:
    pytest.importorskip("lm_eval")
    return harness_model(checkpoint)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_figures_are_those_of_the_harness(name: str, checkpoint: Path, theirs: Any, tmp_path: Path) -> None:
    splits = {"test": [generated(name, n) for n in range(24)]}
    data = {name: file_of(tmp_path / "test.jsonl", splits["test"])}
    if name == "gsm8k":
        splits["train"] = [generated(name, n) for n in range(100, 130)]
        data["gsm8k.train"] = file_of(tmp_path / "train.jsonl", splits["train"])
    ours, samples = evaluation(checkpoint, tmp_path / "ours", TASKS[name], data)
    expected = evaluated(theirs, harness_task(TASKS[name], splits))
    compare(name, ours, samples, expected)
    assert all(math.isfinite(figure["value"]) for figure in ours[name].values())


# How many items of each, times what is asked for by hand; a generated text takes as long as many questions.
TIMES = int(os.environ.get("LLMCTL_TEST_ITEMS_TIMES", "1"))
REAL = {name: TIMES * count for name, count in {"piqa": 20, "copa": 24, "lambada": 12, "gsm8k": 2}.items()}


@pytest.fixture(scope="module")
def theirs_real(smollm2: Artifact) -> Any:
    pytest.importorskip("lm_eval")
    return harness_model(smollm2.data, batch_size=16)


@pytest.mark.slow
@pytest.mark.timeout(1800 * TIMES)
@pytest.mark.parametrize("name", sorted(REAL))
def test_a_real_model_on_real_items(name: str, smollm2: Artifact, theirs_real: Any, tmp_path: Path) -> None:
    splits = {"test": rows_of(name, REAL[name])}
    data = {name: file_of(tmp_path / "test.jsonl", splits["test"])}
    if name == "gsm8k":
        splits["train"] = rows_of("gsm8k.train", 1000)
        data["gsm8k.train"] = file_of(tmp_path / "train.jsonl", splits["train"])
    ours, samples = evaluation(smollm2.data, tmp_path / "ours", TASKS[name], data)
    expected = evaluated(theirs_real, harness_task(TASKS[name], splits))
    compare(name, ours, samples, expected)


def rows_of(name: str, count: int) -> list[dict[str, Any]]:
    path = DATA / FILES[name]
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
