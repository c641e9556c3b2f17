"""From a task file to a verdict: programs of HumanEval and MBPP through the sandbox."""

from __future__ import annotations

import gzip
import json

import pytest

from llmctl.config.tasks import TaskConfig, read_task
from llmctl.evals.checks import passes, programs_of
from llmctl.evals.items import Item
from llmctl.evals.sandbox.verify import verify
from tests.conftest import DATA

HUMANEVAL = DATA / "humaneval" / "HumanEval.jsonl.gz"


def shipped(name: str) -> TaskConfig:
    config = read_task(name)
    assert isinstance(config, TaskConfig)
    return config


def verified(config: TaskConfig, row: dict[str, object], *answers: str) -> list[float | None]:
    assert config.check is not None
    programs = programs_of(config.check, config.task, Item("", 0, "0", row, ()), answers)
    return [verdict.score for verdict in verify(programs)]


@pytest.mark.skipif(not HUMANEVAL.exists(), reason=f"no {HUMANEVAL}")
@pytest.mark.parametrize("number", [0, 32, 38, 50], ids=["plain", "poly", "encode_cyclic", "encode_shift"])
def test_humaneval(number: int) -> None:
    """Some of its tests use helpers of the prompt, which are not the program's to bring."""
    with gzip.open(HUMANEVAL, "rt", encoding="utf-8") as lines:
        row = [json.loads(line) for line in lines][number]
    assert verified(shipped("humaneval"), row, row["canonical_solution"], "", "    return 1") == [True, False, False]


def test_mbpp() -> None:
    node = "class Node:\n    def __init__(self, value): self.value, self.next = value, None\n"
    row = {
        "text": "Write a function to count the nodes of a list.",
        "code": node + "def count(n): return 1 + count(n.next) if n else 0",
        "test_setup_code": "head = Node(1)\nhead.next = Node(2)",
        "test_list": ["assert count(head) == 2", "assert count(Node(1)) == 1"],
    }
    right = node + "def count(n):\n    c = 0\n    while n: c, n = c + 1, n.next\n    return c"
    assert verified(shipped("mbpp"), row, right, right.replace("c + 1", "1"), "") == [True, False, False]


@pytest.mark.parametrize(
    ("right", "tried", "k", "chance"),
    [(0, 5, 1, 0.0), (5, 5, 1, 1.0), (2, 5, 1, 0.4), (2, 5, 2, 0.7), (1, 10, 10, 1.0), (3, 10, 4, 5 / 6)],
)
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(right: int, tried: int, k: int, chance: float) -> None:
    assert passes(right, tried, k) == pytest.approx(chance, abs=1e-12)
