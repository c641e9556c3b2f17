"""Every canonical solution of HumanEval passes, every empty one fails."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llmctl.evals.sandbox.box import Sandbox
from llmctl.evals.sandbox.verdict import Limits
from tests.conftest import DATA

FILE = DATA / "humaneval" / "HumanEval.jsonl.gz"


@pytest.mark.skipif(not FILE.exists(), reason=f"no {FILE}")
def test_canonical_solutions_pass_and_empty_ones_fail(box: Sandbox) -> None:
    with gzip.open(FILE, "rt", encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines]

    def kind(problem: dict[str, Any], solution: str) -> str:
        tests = f"{problem['test']}\ncheck({problem['entry_point']})\n"
        return box.check(
            problem["prompt"] + solution,
            tests,
            setup=problem["prompt"],
            calls=[problem["entry_point"]],
            limits=Limits(timeout_s=10),
        ).kind

    with ThreadPoolExecutor(2) as threads:
        right = Counter(threads.map(lambda problem: kind(problem, problem["canonical_solution"]), problems))
        empty = Counter(threads.map(lambda problem: kind(problem, ""), problems))
    assert (right, empty) == ({"passed": 164}, {"failed": 164})
