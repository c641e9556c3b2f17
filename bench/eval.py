"""Requests a second of eval against lm-evaluation-harness: the same requests, model and threads, in one run.

    python bench/eval.py CHECKPOINT --data shared/data --items 40 --threads 2

CHECKPOINT is a directory that llmctl and transformers both open, in float32. Each side tokenizes, scores and generates
by itself; answers are compared, so that neither is fast by leaving something out. The harness (its HFLM over
transformers) takes batches of --batch-size; the time of making prompts is not counted on either side. Seconds are given
as the clock has them and as this process was computing, which says more on a machine that others use too (then with
--threads 1).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from llmctl.config.evals import EvalConfig
from llmctl.config.tasks import TaskConfig
from llmctl.evals.cache import RequestCache, answered
from llmctl.evals.load import loaded
from llmctl.evals.local import LocalModel
from llmctl.inference.conversation import open_engine
from llmctl.store.artifact import FileInput
from tests.evals.harness import harness_model, harness_task
from tests.evals.test_parity import TASKS, rows_of

SHOTS = {"piqa": 0, "piqa_5": 5, "copa": 0, "copa_5": 5, "lambada": 0, "gsm8k": 3}


def task_of(name: str) -> dict[str, Any]:
    """A task of the parity tests; with shots, always the same ones, as MMLU has them."""
    task = {**TASKS[name.partition("_")[0]], "num_fewshot": SHOTS[name]}
    if name.endswith("_5"):
        task["fewshot_config"] = {"sampler": "first_n"}
    if task["output_type"] == "multiple_choice":
        task["metric_list"] = [{"metric": "acc"}]  # mutual information would ask everything twice
    return task


@dataclass
class Watch:
    """Seconds by the clock, and of computing, since it was made or read."""

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.wall, time.process_time() - self.cpu


def ours(
    model: LocalModel, task: dict[str, Any], data: dict[str, FileInput]
) -> tuple[tuple[float, float], int, list[Any]]:
    """(seconds, requests, answers)."""
    config = TaskConfig.model_validate(task)
    items = loaded(config, EvalConfig(), data, model.engine.tokenizer, chat=False).items
    requests = [request for item in items for request in item.requests]
    watch = Watch()
    with RequestCache(None, "") as cache:
        answers = answered(model, requests, cache, lambda _: None)
    return watch.read(), len(requests), answers


def theirs(model: Any, task: dict[str, Any], splits: dict[str, Any]) -> tuple[tuple[float, float], list[Any]]:
    """(seconds, answers)."""
    built = harness_task(task, splits)
    built.set_fewshot_seed(1234)
    built.build_all_requests()
    watch = Watch()
    kind = "generate_until" if task["output_type"] == "generate_until" else "loglikelihood"
    answers = getattr(model, kind)(built.instances, disable_tqdm=True)
    return watch.read(), answers


def same(ours_said: list[Any], theirs_said: list[Any]) -> str:
    """How far the answers are apart."""
    if isinstance(theirs_said[0], str):
        return f"{sum(one.text == other for one, other in zip(ours_said, theirs_said, strict=True))} texts equal"
    return (
        f"{max(abs(one.logprob - other[0]) for one, other in zip(ours_said, theirs_said, strict=True)):.1e} nats apart"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--texts", type=int, default=8, help="items of gsm8k")
    parser.add_argument("--tasks", nargs="+", default=sorted(SHOTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8, help="of the harness")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = Path(tempfile.mkdtemp())
    harness = harness_model(options.checkpoint, options.batch_size)
    columns = ("ours /s", "theirs /s", "ratio", "ours /cpu s", "theirs", "ratio")
    print(f"{'task':10} {'requests':>8} " + " ".join(f"{name:>9}" for name in columns) + "  answers")
    spent, asked = [0.0] * 4, 0
    with open_engine(options.checkpoint, device="cpu", precision="fp32", max_running=32) as engine:
        model = LocalModel(engine, "bench", batch_tokens=8192, truncate=True)
        for name in options.tasks:
            task = task_of(name)
            count = options.texts if name == "gsm8k" else options.items
            splits = {"test": rows_of(task["task"], count)}
            if name == "gsm8k":
                splits["train"] = rows_of("gsm8k.train", 1000)
            data = {}
            for split, rows in splits.items():
                path = folder / f"{name}.{split}.jsonl"
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
                data[task["task"] if split == "test" else f"{task['task']}.{split}"] = FileInput.of(path, "prompts")
            (wall, cpu), requests, said = ours(model, task, data)
            (their_wall, their_cpu), their_said = theirs(harness, task, splits)
            seconds = (wall, their_wall, cpu, their_cpu)
            spent, asked = [before + more for before, more in zip(spent, seconds, strict=True)], asked + requests
            print(f"{row(name, requests, seconds)}  {same(said, their_said)}", flush=True)
    print(row("all", asked, spent))


def row(name: str, requests: int, seconds: Sequence[float]) -> str:
    """Requests a second of both sides and their ratio, by the clock and by what was computed."""
    wall, their_wall, cpu, their_cpu = seconds
    return (
        f"{name:10} {requests:8} {requests / wall:9.2f} {requests / their_wall:9.2f} {their_wall / wall:9.2f} "
        f"{requests / cpu:9.2f} {requests / their_cpu:9.2f} {their_cpu / cpu:9.2f}"
    )


if __name__ == "__main__":
    main()
