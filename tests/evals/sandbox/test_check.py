"""What a verdict says of honest programs, good and bad."""

from __future__ import annotations

import threading

import pytest

from llmctl.evals.sandbox.box import Sandbox
from llmctl.evals.sandbox.verdict import Limits
from tests.evals.sandbox.conftest import SHORT

SQUARE = "def f(x):\n    return x * x\n"


def test_a_right_program_passes(box: Sandbox) -> None:
    verdict = box.check(SQUARE, "assert f(3) == 9\nassert f(-2) == 4")
    assert (verdict.kind, verdict.error, verdict.score) == ("passed", None, 1.0)
    assert {"user", "mount", "pid", "net", "ipc", "uts", "no capabilities"} <= set(verdict.isolation)


def test_a_wrong_answer_fails_at_the_line_of_the_test(box: Sandbox) -> None:
    verdict = box.check(SQUARE, "assert f(3) == 9\n\nassert f(2) == 5, 'two'")
    assert (verdict.kind, verdict.error, verdict.message) == ("failed", "AssertionError", "two")
    assert (verdict.where, verdict.line, verdict.score) == ("tests", 3, 0.0)


@pytest.mark.parametrize(
    ("program", "error", "line"),
    [
        ("", "NameError", None),
        ("def f(x):\n    return x +", "SyntaxError", 2),
        ("import nowhere\ndef f(x): return x", "ModuleNotFoundError", 1),
        ("def f(x):\n    y = 0\n    return x / y", "ZeroDivisionError", 3),
        ("class OwnError(Exception): pass\ndef f(x):\n    raise OwnError('no')", "OwnError", 3),
        ("def f(x):\n    return g(x)\ndef g(x):\n    return [][x]", "IndexError", 4),
        ("import sys\nsys.exit(0)", "SystemExit", 2),
        ("def f(x): return f(x)", "RecursionError", 1),
        ("b'\\xff'.decode()", "UnicodeDecodeError", 1),
    ],
)
def test_an_exception_fails_at_the_line_of_the_program(box: Sandbox, program: str, error: str, line: int) -> None:
    verdict = box.check(program, "assert f(3) == 9")
    assert (verdict.kind, verdict.where, verdict.error, verdict.line) == ("failed", "program", error, line)


def test_an_exception_that_the_tests_expect_arrives_in_its_type(box: Sandbox) -> None:
    program = "def f(x):\n    if x < 0: raise ValueError('negative')\n    return x"
    tests = (
        "assert f(1) == 1\n"
        "try:\n    f(-1)\nexcept ValueError as error:\n    assert str(error) == 'negative'\nelse:\n    assert False"
    )
    assert box.check(program, tests).kind == "passed"


VALUES = (
    "None", "True", "-7", "10**400", "-(2**70)", "10**5000", "1.5", "float('inf')", "1j", "'caf\\u00e9 \\ud800'",
    "b'\\x00'",
    "[1, [2, (3,)]]", "{1: 'a', (2, 3): {4}}", "frozenset([1])", "range(1, 9, 2)", "[True, None, 1, 1.0]",
    "__import__('decimal').Decimal('0.10')", "__import__('fractions').Fraction(1, 3)",
    "__import__('datetime').datetime(2026, 1, 2, 3)", "__import__('datetime').timedelta(1, 2, 3)",
)  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_plain_data_comes_back_as_it_was(box: Sandbox, value: str) -> None:
    tests = f"value = {value}\nback = f(value)\nassert type(back) is type(value) and back == value"
    assert box.check("def f(x): return x", tests).kind == "passed"


def test_what_derives_from_plain_data_counts_as_plain(box: Sandbox) -> None:
    program = (
        "from collections import Counter, namedtuple, OrderedDict, defaultdict\n"
        "from enum import IntEnum\n"
        "def f(): return [Counter('aab'), namedtuple('P', 'x y')(1, 2), OrderedDict(a=1), IntEnum('E', 'A').A]"
    )
    assert box.check(program, "assert f() == [{'a': 2, 'b': 1}, (1, 2), {'a': 1}, 1]").kind == "passed"


def test_iterators_give_their_items_as_they_are_asked(box: Sandbox) -> None:
    program = "import itertools\ndef f(x): return itertools.count(x)\ndef g(): return {1: 2}.keys()"
    tests = "numbers = f(3)\nassert [next(numbers), next(numbers)] == [3, 4]\nassert list(g()) == [1]"
    assert box.check(program, tests, calls=["f", "g"]).kind == "passed"


STACK = """
class Stack:
    def __init__(self, items): self.items, self.top = list(items), None
    def push(self, item): self.items.append(item); self.top = item
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
def total(stack): return sum(stack.items)
"""


def test_classes_of_the_program_are_tested_by_their_methods(box: Sandbox) -> None:
    tests = (
        "s = Stack([1])\ns.push(5)\nassert s and len(s) == 2 and s.top == 5 and total(s) == 6\n"
        "s.top = 7\nassert s.top == 7 and s.pop() == 5"
    )
    assert box.check(STACK, tests, calls=["total"], classes=["Stack"]).kind == "passed"
    assert box.check(STACK, "assert Stack([1]) == Stack([1])", classes=["Stack"]).kind == "failed"


def test_built_in_functions_and_types_can_be_passed(box: Sandbox) -> None:
    program = "def f(items, kind, key): return sorted((i for i in items if isinstance(i, kind)), key=key)"
    assert box.check(program, "assert f(['bb', 1, 'a'], str, len) == ['a', 'bb']").kind == "passed"


def test_helpers_of_the_set_up_are_not_the_programs(box: Sandbox) -> None:
    setup = "import math\ndef near(a, b): return math.isclose(a, b)"
    program = "def near(a, b): return True\ndef f(x): return x + 1"
    assert box.check(program, "assert near(f(1), 1.0)", setup=setup).kind == "failed"
    assert box.check(program, "assert near(f(1), 2.0)", setup=setup).kind == "passed"


@pytest.mark.parametrize(
    ("tests", "setup", "reason"),
    [
        ("assert f(1) ==", "", "the tests do not parse"),
        ("assert f(1) == 1", "import nowhere", "the set-up of the tests does not run"),
        ("assert near(f(1), 1)", "", "the tests use f, near"),
        ("assert 1 == 1", "", "the tests never call the program"),
        ("assert f(lambda: 1) == 1", "", "the tests pass a function"),
    ],
)
def test_faults_of_the_tests_are_no_verdict(box: Sandbox, tests: str, setup: str, reason: str) -> None:
    verdict = box.check(SQUARE, tests, setup=setup)
    assert (verdict.kind, verdict.score) == ("missing", None)
    assert verdict.message is not None
    assert verdict.message.startswith(reason)


def test_time_and_memory(box: Sandbox) -> None:
    for program, tests in (
        ("def f(x):\n    while True: pass", "assert f(1) == 1"),
        ("import time\ntime.sleep(60)", "assert f(1) == 1"),
        (SQUARE, "assert f(1) == 1\nwhile True: pass"),
    ):
        assert box.check(program, tests, limits=SHORT).kind == "timed out"
    verdict = box.check("def f(x):\n    return len(bytes(2 << 30))", "assert f(1) == 1")
    assert (verdict.kind, verdict.line) == ("memory", 2)
    small = Limits(timeout_s=5, memory_bytes=256 << 20)
    assert box.check("def f(x):\n    return len(bytes(300 << 20))", "assert f(1) == 1", limits=small).kind == "memory"


def test_threads_share_a_sandbox(box: Sandbox) -> None:
    kinds: dict[int, str] = {}

    def check(number: int) -> None:
        kinds[number] = box.check(f"def f(x): return x + {number}", "assert f(0) % 2 == 0").kind

    threads = [threading.Thread(target=check, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kinds == {number: "failed" if number % 2 else "passed" for number in range(12)}
