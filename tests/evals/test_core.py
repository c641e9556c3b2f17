"""CORE by nanochat's rules: examples, tokens that count, and the centred mean, against the rules read once more."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl.config.tasks import GroupConfig, TaskConfig, read_task
from llmctl.model import huggingface
from llmctl.model.transformer import Transformer
from llmctl.tokens.tokenizer import Tokenizer
from tests.evals.evaluations import Evals, samples
from tests.evals.test_stage import log_softmax
from tests.evals.tiny import file_of, text

COUNT, LIMIT = 12, 7
ROWS: dict[str, Any] = {
    "core_arc_easy": lambda n: {
        "query": text(n, 4), "choices": [f"the {text(40 * n + c, 1 + c)}" for c in range(3)], "gold": n % 3
    },
    "core_winograd": lambda n: {
        "context_options": [f"{text(n, 3)} {word}" for word in ("list", "open file")], "continuation": text(n + 50, 3),
        "gold": n % 2,
    },
    "core_jeopardy": lambda n: {"context": f" {text(n, 4)} ", "continuation": "the" if n % 2 else text(n, 1)},
}  # fmt: skip


def shuffled(rows: list[Any]) -> list[tuple[int, Any]]:
    """(number in the file, row) in nanochat's order, cut at the limit."""
    numbered = list(enumerate(rows))
    random.Random(1337).shuffle(numbered)
    return numbered[:LIMIT]


def is_right(
    model: Transformer, tokenizer: Tokenizer, row: Mapping[str, Any], before: list[Any], delimiter: str
) -> bool:
    """Whether nanochat would call the model right, each text run alone."""

    def ids_of(said: str) -> list[int]:
        return [tokenizer.bos_id, *tokenizer.encode(said)]

    def common(one: list[int], other: list[int]) -> int:
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))

    def likely(ids: list[int], start: int) -> tuple[float, bool]:
        """Mean log-probability of the tokens from `start` on, and whether each is the likeliest."""
        before, after = log_softmax(model, ids)[start - 1 : -1], torch.tensor(ids[start:])
        return float(before.gather(-1, after[:, None]).mean()), bool((before.argmax(dim=-1) == after).all())

    if "context" in row:
        shots = "".join(f"{one['context'].strip()}{delimiter}{one['continuation']}\n\n" for one in before)
        asked = shots + row["context"].strip() + delimiter
        return likely(ids_of(asked + row["continuation"]), len(ids_of(asked.strip())))[1]
    if "query" in row:
        shots = "".join(f"{one['query']}{delimiter}{one['choices'][one['gold']]}\n\n" for one in before)
        texts = [ids_of(f"{shots}{row['query']}{delimiter}{choice}") for choice in row["choices"]]
        start = min(common(texts[0], other) for other in texts)
        starts = [min(start, len(ids) - 1) for ids in texts]
    else:
        texts = [ids_of(f"{option}{delimiter}{row['continuation']}") for option in row["context_options"]]
        end = min(common(texts[0][::-1], other[::-1]) for other in texts)
        starts = [len(ids) - end for ids in texts]
    means = [likely(ids, start)[0] for ids, start in zip(texts, starts, strict=True)]
    return means.index(max(means)) == row["gold"]


@pytest.mark.parametrize("name", sorted(ROWS))
def test_items_are_right_where_nanochat_calls_them_right(name: str, evals: Evals, tmp_path: Path) -> None:
    task = next(one for one in group().tasks if one.task == name)
    shots = min(2, task.num_fewshot)
    group_file = tmp_path / "some.yaml"
    group_file.write_text(json.dumps({"group": "some", "task": [task.model_dump(mode="json", exclude_unset=True)]}))
    rows = [ROWS[name](n) for n in range(COUNT)]
    config = {"tasks": str(group_file), "limit": LIMIT, "shots": shots, "overlong": "truncate"}
    artifact = evals.run(config, **{name: file_of(tmp_path / "rows.jsonl", rows)})
    model, tokenizer = huggingface.load(evals.checkpoint.data), Tokenizer.open(evals.checkpoint.data)
    order = shuffled(rows)
    expected = []
    for place, (_, row) in enumerate(order):
        others = [at for at in range(LIMIT) if at != place]
        chosen = random.Random(1234 + place).sample(others, shots)
        expected.append(is_right(model, tokenizer, row, [order[at][1] for at in chosen], task.target_delimiter))
    kept = samples(artifact)
    assert [row["number"] for row in kept] == [number for number, _ in order]
    assert [json.loads(row["scores"])["acc"] for row in kept] == list(map(float, expected))
    assert 0 < sum(expected) < LIMIT or name == "core_jeopardy"


def group() -> GroupConfig:
    config = read_task("core")
    assert isinstance(config, GroupConfig)
    return config


def test_core_is_the_mean_over_its_tasks_with_guessing_at_0(evals: Evals, tmp_path: Path) -> None:
    assert [len(group().tasks), len({task.task for task in group().tasks})] == [22, 22]
    few = [task for task in group().tasks if task.task in ("core_copa", "core_lambada_openai", "core_boolq")]
    assert [task.chance for task in few] == [0.5, 0.0, 0.62]
    content = group().model_dump(mode="json", exclude_unset=True)
    content["task"] = [task.model_dump(mode="json", exclude_unset=True) for task in few]
    (tmp_path / "three.yaml").write_text(json.dumps({**content, "group": "three"}))
    data = {
        "core_copa": [
            {"query": text(n, 3), "choices": [text(n + 20, 2), text(n + 30, 2)], "gold": 0} for n in range(8)
        ],
        "core_boolq": [{"query": text(n, 5), "choices": ["no", "yes"], "gold": n % 2} for n in range(8)],
        "core_lambada_openai": [{"context": text(n, 9), "continuation": text(n, 1)} for n in range(8)],
    }
    files = {name: file_of(tmp_path / f"{name}.jsonl", rows) for name, rows in data.items()}
    totals = evals.run({"tasks": str(tmp_path / "three.yaml"), "shots": 1}, **files).manifest.totals
    copa, boolq, lambada = (float(totals[f"{name}.acc"]) for name in data)
    assert totals["three.acc_centred"] == pytest.approx(((copa - 0.5) / 0.5 + (boolq - 0.62) / 0.38 + lambada) / 3)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"metric_list": ["acc", "acc_norm"]}, "scored: apart gives acc alone, not acc_norm"),
        ({"output_type": "generate_until", "metric_list": ["exact_match"]}, "has no choices to tell apart"),
    ],
)
def test_what_cannot_be_scored_apart_is_refused(fields: dict[str, Any], said: str) -> None:
    plain = {"task": "t", "output_type": "multiple_choice", "doc_to_choice": "c", "metric_list": ["acc"]}
    with pytest.raises(ValueError, match=said):
        TaskConfig.model_validate({**plain, "scored": "apart", **fields})
