"""What goes into the sandbox and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one run may use. Memory counts for each process, of which there is one unless `processes` allows more.

    Attributes:
        timeout_s: wall-clock seconds until everything is killed; the processor time is bounded just above it.
        memory_bytes: address space.
        scratch_bytes: size of /tmp, which is memory; also the largest file.
        scratch_files: files and folders in /tmp.
        output_bytes: of standard output and of standard error each; beyond it the run is stopped.
        open_files: descriptors.
        threads: at once.
        processes: at once, the program included; 1 refuses every fork.
    """

    timeout_s: float = 3.0
    memory_bytes: int = 512 * MIB
    scratch_bytes: int = 16 * MIB
    scratch_files: int = 1024
    output_bytes: int = MIB
    open_files: int = 64
    threads: int = 32
    processes: int = 1


@dataclass(frozen=True)
class Verdict:
    """What the tests say about a program.

    Attributes:
        kind: `missing` is no verdict: the sandbox is not to be had here, or the tests are at fault.
        error: type of the exception of a failure.
        message: its message, or the reason of a missing verdict.
        line: of the program or the tests, as `where` says.
        where: whose code raised the error.
        seconds: wall-clock time from the request to the verdict, the wait for a free place not included.
        isolation: what held the program; empty where it did not run.
    """

    kind: Literal["passed", "failed", "timed out", "memory", "missing"]
    error: str | None = None
    message: str | None = None
    line: int | None = None
    where: Literal["program", "tests"] | None = None
    seconds: float = 0.0
    isolation: tuple[str, ...] = ()

    @property
    def told(self) -> str:
        """The verdict in a line: `failed: AssertionError in line 3 of the tests`."""
        said = self.error or self.message
        place = f" in line {self.line} of the {self.where}" if self.line is not None and self.where else ""
        return f"{self.kind}: {said}{place}" if said else self.kind

    @property
    def score(self) -> float | None:
        """1 for passed, 0 for a program that did not pass, None (not 0) for a missing verdict."""
        return None if self.kind == "missing" else float(self.kind == "passed")


@dataclass(frozen=True)
class Output:
    """What a program did when it was run on its own.

    Attributes:
        kind: `output` is a run stopped because it wrote too much; `missing` is none at all, see `reason`.
        stdout, stderr: what it wrote, up to the limit; bytes that are no UTF-8 are replaced.
        exit_code: negative for a signal, as subprocess has it; None where it was stopped or did not run.
        error: type of the exception that ended it.
        line: of the program, where that was raised.
        reason: of a missing run.
        seconds: wall-clock time, the wait for a free place not included.
        isolation: what held the program; empty where it did not run.
    """

    kind: Literal["exited", "timed out", "memory", "output", "missing"]
    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None
    error: str | None = None
    line: int | None = None
    reason: str | None = None
    seconds: float = 0.0
    isolation: tuple[str, ...] = ()
