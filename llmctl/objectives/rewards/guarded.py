"""Rewards that may hang or fail, run in a process of their own that is ended when one does."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmctl.objectives.rewards.rules import NoRewardError, Sample

PROGRAM = Path(__file__).with_name("child.py")
START_S = 60.0  # what the child may take to start and to import the user's file
PIPED_BYTES = 1 << 15  # what a pipe holds in any case, so that nobody waits to be read
ENDED = "its process ended"


class Guarded:
    """One reward in a child process, started when it is first asked and again after it had to be ended.

    Args:
        task: what the child is to do: `{"do": "regex", …}`, `{"do": "function", …}` or `{"do": "math"}`.
        timeout_s: for each answer.
    """

    def __init__(self, task: Mapping[str, Any], timeout_s: float) -> None:
        self._task, self._timeout_s = task, timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._read = b""

    def judge(self, samples: Sequence[Sample]) -> list[float | NoRewardError]:
        """The value of each answer, in turn, or why it has none: it raised, hung, or ended its process."""
        return [_number(said) for said in self._each(map(_asked_of, samples))]

    def check(self) -> None:
        """Start the child, which imports and compiles what it needs.

        Raises:
            NoRewardError: it cannot.
        """
        if self._child is None:
            with self._ended(f"not ready within {START_S:g} s"):
                self._start()

    def ask(self, asked: Mapping[str, Any]) -> Any:
        """What the child says to that.

        Raises:
            NoRewardError: it raised, hung or ended its process.
        """
        (said,) = self._each([asked])
        if isinstance(said, NoRewardError):
            raise said
        return said

    def _each(self, asked: Iterable[Mapping[str, Any]]) -> list[Any]:
        """What the child says to each, which it is told of beforehand as far as its pipe holds; or a NoRewardError."""
        lines = [json.dumps(one, default=str).encode() + b"\n" for one in asked]
        found: list[Any] = []
        told = piped = 0  # lines that the child knows of, and bytes of those that it has not answered
        while len(found) < len(lines):
            try:
                self.check()
                with self._ended(f"no value within {self._timeout_s:g} s"):
                    while told < len(lines) and (not piped or piped + len(lines[told]) <= PIPED_BYTES):
                        self._say(lines[told])
                        told, piped = told + 1, piped + len(lines[told])
                    said = self._hear(self._timeout_s)
                piped -= len(lines[len(found)])
                found.append(said["value"] if "value" in said else NoRewardError(str(said.get("error", "no value"))))
            except NoRewardError as error:
                found.append(error)
                told, piped = len(found), 0  # another child begins with the next
        return found

    @contextlib.contextmanager
    def _ended(self, late: str) -> Iterator[None]:
        """A child that is late, gone or says what is no JSON is ended, and there is no reward."""
        try:
            yield
        except TimeoutError:
            self.close()
            raise NoRewardError(late) from None
        except (OSError, EOFError, ValueError):
            self.close()
            raise NoRewardError(ENDED) from None

    def _start(self) -> None:
        self._read = b""
        self._child = subprocess.Popen(
            [sys.executable, str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
            start_new_session=True,  # Ctrl-C ends the step first, and the step needs its rewards
        )
        self._say(json.dumps({**self._task, "give_up_s": 2 * self._timeout_s}, default=str).encode() + b"\n")
        said = self._hear(START_S)
        if "error" in said:
            self.close()
            raise NoRewardError(str(said["error"]))

    def _say(self, line: bytes) -> None:
        """One line; what a child that is gone has not read is of no use to it, and what it said before may be heard."""
        assert self._child is not None, "started"
        assert self._child.stdin is not None, "a pipe was asked for"
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(line)
            self._child.stdin.flush()

    def _hear(self, timeout_s: float) -> dict[str, Any]:
        """The child's next line."""
        assert self._child is not None, "started"
        assert self._child.stdout is not None, "a pipe was asked for"
        end = time.monotonic() + timeout_s
        descriptor = self._child.stdout.fileno()
        while b"\n" not in self._read:
            left = end - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise TimeoutError
            more = os.read(descriptor, 1 << 16)
            if not more:
                raise EOFError
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        said = json.loads(line)
        return said if isinstance(said, dict) else {}

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not read by a child that is gone
                    pipe.close()
        child.wait()


def _asked_of(sample: Sample) -> dict[str, Any]:
    return {
        "prompt": sample.prompt,
        "completion": sample.completion,
        "answer": sample.answer,
        "fields": sample.fields,
    }


def _number(said: Any) -> float | NoRewardError:
    """What the child said; its programs say numbers."""
    return said if isinstance(said, NoRewardError) else float(said)


def _environment() -> dict[str, str]:
    """One thread, and hashes that are the same in every run."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
