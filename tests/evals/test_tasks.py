"""The tasks that are shipped ask what lm-evaluation-harness asks, to the byte."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from llmctl.config.evals import EvalConfig
from llmctl.config.tasks import TaskConfig, read_task, shipped
from llmctl.evals.load import loaded
from llmctl.evals.requests import Generation, Likelihood, Rolling
from llmctl.store.artifact import Input
from tests.evals.harness import asked, harness_task
from tests.evals.tiny import file_of, text

COUNT = 12


def sentence(seed: int, words: int = 6) -> str:
    return text(seed, words).capitalize()


def choices(number: int) -> dict[str, list[str]]:
    return {"text": [text(900 + 7 * number + n, 3) for n in range(4)], "label": ["A", "B", "C", "D"]}


ROWS: dict[str, Any] = {
    "hellaswag": lambda n: {
        "activity_label": "Roof shingle removal", "ctx_a": sentence(n), "ctx_b": text(n + 50, 2),
        "endings": [f" is [title] {text(100 * n + e, 3)} [step]  x. " for e in range(4)], "label": str(n % 4),
    },
    "arc_easy": lambda n: {"question": sentence(n), "choices": choices(n), "answerKey": "ABCD"[n % 4]},
    "mmlu": lambda n: {
        "question": f" {sentence(n)} ", "choices": choices(n)["text"], "answer": n % 4, "subject": "college_physics"
    },
    "piqa": lambda n: {"goal": sentence(n), "sol1": sentence(n + 100), "sol2": sentence(n + 200), "label": n % 2},
    "copa": lambda n: {
        "premise": f"{sentence(n)} ", "question": ("cause", "effect")[n % 2], "choice1": sentence(n + 100),
        "choice2": sentence(n + 200), "label": n % 2,
    },
    "winogrande": lambda n: {
        "sentence": f"{sentence(n)} The _ is {text(n + 9, 2)}", "option1": "list", "option2": "key",
        "answer": str(1 + n % 2),
    },
    "openbookqa": lambda n: {"question_stem": sentence(n), "choices": choices(n), "answerKey": " ABCD"[n % 4 + 1]},
    "boolq": lambda n: {"passage": sentence(n, 20), "question": text(n, 5), "label": n % 2},
    "truthfulqa_mc1": lambda n: {
        "question": sentence(n), "mc1_targets": {"choices": choices(n)["text"], "labels": [1, 0, 0, 0]},
        "mc2_targets": {"choices": choices(n)["text"], "labels": [1, 0, 1, 0]},
    },
    "lambada_openai": lambda n: {"text": text(n, 20)},
    "gsm8k": lambda n: {"question": sentence(n), "answer": f"{sentence(n + 70)}\n#### {n}"},
    "wikitext": lambda n: {
        "page": f" = {sentence(n)} = \n 1 @,@ 2{n} ( {text(n, 3)} ) , \" {text(n, 2)} \" ; ' a ' 's 3 ° \n"
    },
    "blimp": lambda n: {"sentence_good": sentence(n), "sentence_bad": sentence(n + 50), "UID": "adjunct_island"},
}  # fmt: skip
ROWS["arc_challenge"], ROWS["truthfulqa_mc2"] = ROWS["arc_easy"], ROWS["truthfulqa_mc1"]
FILES = {
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "blimp": "blimp/adjunct_island.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "copa": "super_glue/copa/default.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "mmlu": "mmlu/default/mmlu_college_physics.yaml",
    "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1.yaml",
    "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml",
    "winogrande": "winogrande/default.yaml",
}


def our_requests(config: TaskConfig, data: Mapping[str, Input], shots: int) -> Sequence[tuple[Any, ...]]:
    task = loaded(config, EvalConfig(shots=shots), data, None, chat=False)
    made: list[tuple[Any, ...]] = []
    for item in task.items:
        for one in item.requests:
            if isinstance(one, Rolling):
                made.append((one.text,))
            elif isinstance(one, Likelihood):
                made.append((one.prompt.text, one.continuation))
            elif isinstance(one, Generation):
                made.append((one.prompt.text,))
    return made


@pytest.mark.parametrize("shots", [0, 3])
@pytest.mark.parametrize("name", sorted(ROWS))
def test_prompts_are_those_of_the_harness(name: str, shots: int, tmp_path: Any) -> None:
    pytest.importorskip("lm_eval")
    if shots and name in ("truthfulqa_mc1", "truthfulqa_mc2", "wikitext", "blimp"):
        pytest.skip("asked without examples")
    if shots and name == "lambada_openai":
        pytest.skip("the harness may draw the item itself as its example, which llmctl never does")
    rows = [ROWS[name](n) for n in range(COUNT)]
    pool = [ROWS[name](n + 1000) for n in range(COUNT)]
    splits = {"train": pool, "dev": pool, "validation": rows, "test": rows}
    if name == "blimp":
        splits["train"] = rows
    theirs = asked(harness_task(FILES.get(name, f"{name}/{name}.yaml"), splits), shots)
    config = read_task(name)
    data = {name: file_of(tmp_path / "rows.jsonl", rows), f"{name}.{config.pool}": file_of(tmp_path / "p.jsonl", pool)}
    ours = our_requests(config, data, shots)
    assert len(ours) == len(theirs) >= COUNT
    assert [request[: len(mine)] for mine, request in zip(ours, theirs, strict=True)] == ours


def test_every_shipped_task_is_known_here() -> None:
    made_here = {"core", "humaneval", "humaneval_chat", "mbpp", "math", "needle", "perplexity"}
    assert set(shipped()) == set(ROWS) | made_here
