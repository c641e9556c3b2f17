"""Generated programs of a benchmark, checked: HumanEval's and MBPP's form, or any program with its tests."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from llmctl.config.errors import InputError
from llmctl.evals.sandbox.box import Sandbox
from llmctl.evals.sandbox.verdict import Verdict


@dataclass(frozen=True)
class Program:
    """One program and its test.

    Attributes:
        source: what the model wrote, with what belongs before it.
        test: what it must pass.
        entry_point: the function that is tested; empty where the test says it.
        setup: trusted source that the test needs.
        reference: a right program, which tells what functions and classes are the program's; may be empty.
        timeout_s: how long it may run.
    """

    source: str
    test: str
    entry_point: str
    setup: str
    reference: str
    timeout_s: float


def verify(programs: Sequence[Program]) -> list[Verdict]:
    """The verdict on each program, in order.

    Raises:
        InputError: this system cannot hold programs, and why.
    """
    with Sandbox() as box:
        refuse_where_impossible(box, "leave out the tasks that run programs")
        return verdicts(box, programs)


def refuse_where_impossible(box: Sandbox, otherwise: str) -> None:
    """Say at once that nothing can be run here, and what to do `otherwise`.

    Raises:
        InputError: so it is, and why.
    """
    if reason := box.refusal():
        raise InputError(
            f"programs of a model cannot be run here: {reason}",
            hint=f"docs/sandbox.md says what is needed; or {otherwise}",
        )


def verdicts(box: Sandbox, programs: Sequence[Program]) -> list[Verdict]:
    """The verdict on each, in order, as many at once as `box` runs."""
    asked = [_asked(box, program) for program in programs]
    with ThreadPoolExecutor(box.workers) as threads:
        return list(threads.map(lambda arguments: box.check(**arguments), asked))


def _asked(box: Sandbox, program: Program) -> dict[str, Any]:
    """What the sandbox is asked about a program: arguments of `Sandbox.check`."""
    test = program.test
    calls: list[str] | None = None
    classes: list[str] = []
    if program.entry_point:
        test, calls = f"{test}\ncheck({program.entry_point})\n", [program.entry_point]
    elif program.reference:
        calls, classes = defined(program.reference)
    return {
        "program": program.source,
        "tests": test,
        "setup": program.setup,
        "calls": calls,
        "classes": classes,
        "limits": replace(box.limits, timeout_s=program.timeout_s),
    }


def defined(source: str) -> tuple[list[str], list[str]]:
    """The functions and the classes that a program defines at its top level."""
    with warnings.catch_warnings():  # about escapes in texts of the benchmark, which nobody here can mend
        warnings.simplefilter("ignore")
        body = ast.parse(source).body
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    return functions, [node.name for node in body if isinstance(node, ast.ClassDef)]
