"""`Sandbox`: run programs that nobody has read, against tests or on their own.

    with Sandbox() as box:
        verdict = box.check("def double(x): return 2 * x", "assert double(4) == 8")
        output = box.run("print(input())", "hello")

What holds a program and what does not: docs/sandbox.md.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from llmctl.evals.sandbox import judge
from llmctl.evals.sandbox.inside import trouble
from llmctl.evals.sandbox.launch import Launcher, RefusedError
from llmctl.evals.sandbox.run import Report, Run, StuckError, sealed
from llmctl.evals.sandbox.verdict import MIB, Limits, Output, Verdict

_CHECKER_EXTRA_S = 0.4  # the tests' process outlives the program's, so that it can say what it saw
_CHECKER_EXTRA_BYTES = 512 * MIB
_LOST_PATIENCE_S = 0.2
_READ_BYTES = 1 << 16
Found = TypeVar("Found", Verdict, Output)


class Sandbox:
    """A place to run untrusted Python; any number of threads may use it at once.

    Attributes:
        limits: of a run that is not given its own.
        workers: runs at once.
    """

    def __init__(self, limits: Limits | None = None, *, workers: int | None = None, paths: Sequence[Path] = ()) -> None:
        """Make it; nothing is started before the first use.

        Args:
            limits: of a run that is not given its own.
            workers: runs at once, further ones wait; the number of processors by default, because the limit of time
                is the wall clock's.
            paths: folders that programs may read and import from, beside the standard library.
        """
        self.limits = limits or Limits()
        self._paths = [path.resolve() for path in paths]
        self.workers = workers or len(os.sched_getaffinity(0))
        self._places = threading.BoundedSemaphore(self.workers)
        self._lock = threading.Lock()
        self._launcher: Launcher | None = None
        self._refusal: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End every run and the launcher; the next use starts anew."""
        with self._lock:
            launcher, self._launcher = self._launcher, None
        if launcher is not None:
            launcher.close()

    def refusal(self) -> str | None:
        """Why this system cannot hold programs; None where it can."""
        try:
            self._ready()
        except RefusedError as error:
            return str(error)
        return None

    def check(
        self,
        program: str,
        tests: str,
        *,
        setup: str = "",
        calls: Sequence[str] | None = None,
        classes: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> Verdict:
        """Whether `program` passes `tests`.

        Args:
            program: untrusted source.
            tests: source that calls the program's functions and raises where an answer is wrong. It runs in a process
                of its own, to which the program only sends data.
            setup: trusted source that runs before the tests, for imports and helpers.
            calls: functions of the program that the tests call; None takes the one name that the tests use and that
                neither they nor `setup` define.
            classes: classes of the program that the tests make instances of.
            limits: instead of the sandbox's own.
        """
        message = {
            "setup": setup,
            "tests": tests,
            "calls": None if calls is None else list(calls),
            "classes": list(classes),
        }
        wanted = limits or self.limits
        return self._within(
            lambda launcher: self._checked(launcher, program, message, wanted),
            lambda reason: Verdict("missing", message=reason),
        )

    def _within(self, asked: Callable[[Launcher], Found], missing: Callable[[str], Found]) -> Found:
        """What `asked` finds once there is a place and a launcher; `missing` where there is none, or it breaks."""
        with self._places:
            began = time.monotonic()
            try:
                launcher = self._ready()
            except RefusedError as error:
                return missing(str(error))
            try:
                found = asked(launcher)
            except (OSError, StuckError) as error:
                self._drop(launcher)
                return replace(missing(str(error)), seconds=time.monotonic() - began)
            return replace(found, seconds=time.monotonic() - began, isolation=launcher.isolation)

    def _checked(self, launcher: Launcher, program: str, message: dict[str, Any], limits: Limits) -> Verdict:
        longer = replace(
            limits,
            timeout_s=limits.timeout_s + _CHECKER_EXTRA_S,
            memory_bytes=limits.memory_bytes + _CHECKER_EXTRA_BYTES,
        )
        solver_end, checker_end = socket.socketpair()
        with solver_end, checker_end:
            solver = Run(launcher, "solver", limits, link=solver_end.fileno())
            checker = Run(launcher, "checker", longer, link=checker_end.fileno())
        with solver, checker:
            solver.send({"program": program})
            checker.send(message)
            result = checker.receive()
            lost = result is not None and result.get("kind") == "lost"
            return judge.verdict(result, solver.end(_LOST_PATIENCE_S if lost else 0.0), checker.end(0.05), limits)

    def run(
        self, program: str, stdin: str = "", *, arguments: Sequence[str] = (), limits: Limits | None = None
    ) -> Output:
        """Run `program` as `python program.py ARGUMENTS` with `stdin` as standard input."""
        wanted, message = limits or self.limits, {"program": program, "arguments": list(arguments)}
        return self._within(
            lambda launcher: self._output(launcher, message, stdin, wanted),
            lambda reason: Output("missing", reason=reason),
        )

    def _output(self, launcher: Launcher, message: dict[str, Any], stdin: str, limits: Limits) -> Output:
        out, their_out = os.pipe()
        err, their_err = os.pipe()
        given = sealed(stdin)
        theirs = {"stdin": given, "stdout": their_out, "stderr": their_err}
        try:
            try:
                script = Run(launcher, "script", limits, **theirs)
            finally:
                for fd in theirs.values():
                    os.close(fd)
            with script:
                script.send(message)
                written, full = _collect([out, err], limits.output_bytes, script.deadline)
                said = script.receive() if not full else None
                report = script.end(0.0 if full else 0.05)
        finally:
            for fd in (out, err):
                os.close(fd)
        stdout, stderr = (text.decode(errors="replace") for text in written)
        return _described(report, said or {}, stdout, stderr, full=full, limits=limits)

    def _drop(self, launcher: Launcher) -> None:
        """End a launcher that does not do its work, unless another thread has replaced it already."""
        with self._lock:
            if self._launcher is launcher:
                self._launcher = None
        launcher.close()

    def _ready(self) -> Launcher:
        """The launcher, started where it is not running.

        Raises:
            RefusedError: the system lacks what is needed; it is asked once.
        """
        with self._lock:
            if self._refusal is not None:
                raise RefusedError(self._refusal)
            if self._launcher is None or not self._launcher.alive():
                try:
                    self._launcher = Launcher(self._paths)
                except RefusedError as error:
                    self._refusal = str(error)
                    raise
            return self._launcher


def _collect(fds: list[int], limit: int, deadline: float) -> tuple[list[bytes], bool]:
    """What is written to `fds` until they end or one has more than `limit`; whether one had."""
    written: dict[int, bytearray] = {fd: bytearray() for fd in fds}
    waiting = select.poll()
    for fd in fds:
        waiting.register(fd, select.POLLIN)
    left = set(fds)
    while left and (remaining := deadline - time.monotonic()) > 0:
        for fd, _ in waiting.poll(remaining * 1000):
            part = os.read(fd, _READ_BYTES)
            written[fd] += part
            if not part:
                waiting.unregister(fd)
                left.discard(fd)
            if len(written[fd]) > limit:
                return [bytes(held[:limit]) for held in written.values()], True
    return [bytes(held) for held in written.values()], False


def _described(report: Report, said: dict[str, Any], stdout: str, stderr: str, *, full: bool, limits: Limits) -> Output:
    """The output of a run that has ended."""
    if report.refused:
        return Output("missing", reason=f"the sandbox could not start a run: {report.refused}")
    if full:
        return Output("output", stdout, stderr)
    if ended := judge.stopped(report, limits):
        return Output(ended, stdout, stderr)
    if not said.get("error"):
        return Output("exited", stdout, stderr, exit_code=report.exit)
    told = trouble.told(said["error"])
    kind: Literal["memory", "exited"] = "memory" if told.type == "MemoryError" else "exited"
    return Output(kind, stdout, stderr, exit_code=report.exit, error=told.type, line=told.line)
