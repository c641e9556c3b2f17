"""Programs of benchmarks: every canonical solution of HumanEval and MBPP passes, every empty one fails."""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from llmctl.config.errors import InputError
from llmctl.evals.sandbox.box import Sandbox
from llmctl.evals.sandbox.verify import Program, defined, verdicts, verify
from tests.conftest import DATA

HUMANEVAL = DATA / "humaneval" / "HumanEval.jsonl.gz"
MBPP = DATA / "mbpp" / "mbpp.jsonl"


@dataclass(frozen=True)
class Given:
    source: str
    test: str
    entry_point: str = ""
    setup: str = ""
    reference: str = ""
    timeout_s: float = 60.0  # a solution of MBPP takes seconds of processor time


def one(box: Sandbox, program: Program) -> str:
    return verdicts(box, [program])[0].kind


def humaneval(row: dict[str, Any], completion: str) -> Program:
    return Given(row["prompt"] + completion, row["test"], row["entry_point"], row["prompt"])


def mbpp(row: dict[str, Any], completion: str) -> Program:
    test = "\n".join([row["test_setup_code"], *row["test_list"]])
    return Given(completion, test, reference=row["code"])


@pytest.mark.skipif(not HUMANEVAL.exists(), reason=f"no {HUMANEVAL}")
def test_humaneval(box: Sandbox) -> None:
    with gzip.open(HUMANEVAL, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    right = verdicts(box, [humaneval(row, row["canonical_solution"]) for row in rows])
    empty = verdicts(box, [humaneval(row, "") for row in rows])
    assert Counter(verdict.kind for verdict in right) == {"passed": 164}
    assert Counter(verdict.kind for verdict in empty) == {"failed": 164}


@pytest.mark.slow
@pytest.mark.skipif(not MBPP.exists(), reason=f"no {MBPP}")
def test_mbpp(box: Sandbox) -> None:
    rows = [json.loads(line) for line in MBPP.read_text(encoding="utf-8").splitlines()]
    right = verdicts(box, [mbpp(row, row["code"]) for row in rows])
    empty = verdicts(box, [mbpp(row, "") for row in rows])
    assert Counter(verdict.kind for verdict in right) == {"passed": len(rows)}
    assert Counter(verdict.kind for verdict in empty) == {"failed": len(rows)}


NODES = "class Node:\n    def __init__(self, value): self.value, self.next = value, None\n"
LENGTH = "def length(node):\n    count = 0\n    while node: count, node = count + 1, node.next\n    return count\n"


def test_setup_and_classes_in_mbpps_form(box: Sandbox) -> None:
    test = "head = Node(1)\nhead.next = Node(2)\nassert length(head) == 2\nassert head.next.value == 2"
    assert one(box, Given(NODES + LENGTH, test, reference=NODES + LENGTH)) == "passed"
    wrong = NODES + "def length(node): return 1"
    assert one(box, Given(wrong, test, reference=NODES + LENGTH)) == "failed"
    assert defined(NODES + LENGTH + "x = 1") == (["length"], ["Node"])


def test_passes_fails_and_neither(box: Sandbox) -> None:
    right, wrong = "def f(x): return x + 1", "def f(x): return x"
    test = "def check(candidate):\n    assert candidate(1) == 2"
    given = [Given(right, test, "f"), Given(wrong, test, "f"), Given(right, "assert f(1) ==", "")]
    assert [verdict.told for verdict in verify(given)] == [
        "passed",
        "failed: AssertionError in line 2 of the tests",
        "missing: the tests do not parse: SyntaxError: invalid syntax (<tests>, line 1)",
    ]
    assert one(box, Given("while True: pass", test, "f", timeout_s=0.2)) == "timed out"


def test_a_module_that_only_the_tests_need_is_missing_here_and_no_fault_of_the_program(box: Sandbox) -> None:
    right = "def f(x): return x + 1"
    needy = "import numpy\ndef check(candidate):\n    assert numpy.abs(candidate(1)) == 2"
    assert one(box, Given(right, needy, "f")) == "missing"
    plain = "def check(candidate):\n    assert candidate(1) == 2"
    assert one(box, Given(f"import numpy\n{right}", plain, "f")) == "failed"
    raising = "def f(x): raise ModuleNotFoundError('numpy')"  # no way out of a zero
    assert one(box, Given(raising, plain, "f")) == "failed"


def test_where_nothing_can_be_run_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_base_executable", "/nowhere/python")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(InputError, match="cannot be run here: .*/nowhere/python") as raised:
        verify([Given("def f(): return 1", "assert f() == 1")])
    assert "docs/sandbox.md" in raised.value.hint
