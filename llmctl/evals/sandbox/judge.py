"""From what the processes of a check report to a verdict: pure functions."""

from __future__ import annotations

import math
import signal
from typing import Any

from llmctl.evals.sandbox.run import Report
from llmctl.evals.sandbox.verdict import Limits, Verdict

_MESSAGE_CHARACTERS = 500


def verdict(result: dict[str, Any] | None, solver: Report, checker: Report, limits: Limits) -> Verdict:
    """The verdict of a check.

    Args:
        result: what the checker said; None where it ended without a word.
        solver: how the program's process ended.
        checker: how the tests' process ended.
        limits: of the program.
    """
    if refused := solver.refused or checker.refused:
        return Verdict("missing", message=f"the sandbox could not start a run: {refused}")
    if result is None:
        return _silent(solver, checker)
    match result["kind"]:
        case "passed":
            return Verdict("passed")
        case "missing":
            return Verdict("missing", message=str(result["reason"])[:_MESSAGE_CHARACTERS])
        case "lost":
            return _lost(solver, limits)
        case _:
            return _failed(result)


def _silent(solver: Report, checker: Report) -> Verdict:
    if "timeout" in {solver.ended, checker.ended}:
        return Verdict("timed out")
    return Verdict("missing", message=f"the tests' process ended with {_exit(checker.exit)} and no result")


def _failed(result: dict[str, Any]) -> Verdict:
    if result.get("type") == "MemoryError" and result.get("where") == "program":
        return Verdict("memory", error="MemoryError", line=_line(result), where="program")
    return Verdict(
        "failed",
        error=str(result.get("type"))[:_MESSAGE_CHARACTERS],
        message=str(result.get("message"))[:_MESSAGE_CHARACTERS],
        line=_line(result),
        where="program" if result.get("where") == "program" else "tests",
    )


def _line(result: dict[str, Any]) -> int | None:
    line = result.get("line")
    return line if isinstance(line, int) else None


def _lost(solver: Report, limits: Limits) -> Verdict:
    """The program's process ended before it answered."""
    if ended := stopped(solver, limits):
        return Verdict(ended)
    if solver.ended == "stopped":
        return Verdict("failed", error="ConnectionError", message="it closed its connection", where="program")
    message = f"it ended with {_exit(solver.exit)} before it answered"
    return Verdict("failed", error="SystemExit", message=message, where="program")


def stopped(report: Report, limits: Limits) -> Any:
    """Which limit ended a run; None where it was none of time and memory."""
    if report.ended == "timeout":
        return "timed out"
    if report.ended == "itself" and report.exit == -signal.SIGKILL:  # by the kernel
        return "timed out" if report.cpu_s >= math.ceil(limits.timeout_s) else "memory"
    return None


def _exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
