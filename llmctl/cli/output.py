"""The one output sink. Nothing else in llmctl writes to stdout.

stdout carries either receipts (in a pipe, or with `--json`), or a short summary for a person (on a
terminal), or only `name@vN` (`-q`). Progress and notes go to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from enum import Enum
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress as Bar

    from llmctl.store.artifact import Artifact

INTERVAL_S = 30.0  # between ticks in a receipt stream, and between plain progress lines


class Mode(Enum):
    """What stdout carries."""

    HUMAN = "human"
    RECEIPTS = "receipts"
    QUIET = "quiet"


class Sink:
    """Where a command says everything that it has to say; also the `Progress` of the stages.

    Args:
        command: the command's name, for stderr lines.
        as_json: force receipts.
        quiet: only `name@vN` on stdout, and no progress.
        human: whether the command answers a person even through a pipe (`ls`, `show`).
    """

    def __init__(self, command: str, *, as_json: bool = False, quiet: bool = False, human: bool = False) -> None:
        self.command = command
        self._out = _take_stdout()
        if quiet:
            self.mode = Mode.QUIET
        elif as_json or not (human or self._out.isatty()):
            self.mode = Mode.RECEIPTS
        else:
            self.mode = Mode.HUMAN
        self._live = self.mode is Mode.HUMAN and sys.stderr.isatty()
        self._begin_at = self._last = time.monotonic()
        self._begin_done: float | None = None
        self._bar: Bar | None = None
        self._begun = False

    def start(self, command: str) -> None:
        """Another stage begins: its own name, and a clock of its own."""
        self.stop_progress()
        self.command = command
        self._last = time.monotonic()
        self._begin_done = None

    # What goes to stdout.

    def write(self, text: str) -> None:
        """One line of text."""
        self.stop_progress()
        self._out.write(text + "\n")
        self._out.flush()

    def write_json(self, value: Mapping[str, Any]) -> None:
        """One line of JSON."""
        self.write(json.dumps(value, ensure_ascii=False))

    def render(self, *content: RenderableType) -> None:
        """Rich renderables, for a person."""
        from rich.console import Console

        self.stop_progress()
        width = None if self._out.isatty() else 120
        console = Console(file=self._out, highlight=False, width=width)
        for part in content:
            console.print(part)

    def begin(self, receipt: Mapping[str, Any]) -> None:
        """The `begin` receipt, where receipts are wanted."""
        self._begun = True
        if self.mode is Mode.RECEIPTS:
            self.write_json(receipt)

    def finish(self, artifact: Artifact, receipt: Mapping[str, Any], following: str, seconds: float = 0.0) -> None:
        """The result of a stage: its receipt, its summary, or its name."""
        from llmctl.cli.summary import headline, summary

        if self.mode is Mode.QUIET:
            self.write(artifact.ref)
            return
        line = headline(artifact, cached=bool(receipt["cached"]), seconds=seconds)
        if self.mode is Mode.RECEIPTS:
            self.write_json(receipt)
            self.note(line)
        else:
            self.render(line, *summary(artifact, following))

    def fail(self, message: str, hint: str, receipt: Mapping[str, Any]) -> None:
        """A handled failure: one clear message on stderr, and the receipt where a reader waits for one."""
        self.stop_progress()
        sys.stderr.write(f"llmctl {self.command}: {message}\n")
        if hint:
            sys.stderr.write(f"  {hint}\n")
        sys.stderr.flush()
        if self._begun and self.mode is Mode.RECEIPTS:
            self.write_json(receipt)

    # What goes to stderr: the `Progress` of llmctl.pipeline.job.

    def note(self, text: str) -> None:
        """One line that the user should know."""
        if self.mode is Mode.QUIET:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
            return
        sys.stderr.write(f"llmctl {self.command}: {text}\n")
        sys.stderr.flush()

    def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
        """Draw a bar on a terminal; elsewhere one plain line, and a tick, every 30 s."""
        if self.mode is Mode.QUIET:
            return
        if self._live:
            self._draw(done, total, unit, facts)
            return
        now = time.monotonic()
        if self._begin_done is None:  # the rate counts from here: a resumed stage has done some before
            self._begin_at, self._begin_done = now, done
        if now - self._last < INTERVAL_S:
            return
        self._last = now
        fresh = done - self._begin_done
        left = (total - done) * (now - self._begin_at) / fresh if total and fresh > 0 else None
        if self.mode is Mode.RECEIPTS and self._begun:
            self.write_json({"t": "tick", unit: done, **({} if left is None else {"eta_s": round(left)})})
        of = f" of {total:,.0f}" if total else ""
        eta = f", {left:,.0f} s left" if left is not None else ""
        self.note(f"{done:,.0f}{of} {unit}{_facts(facts)}{eta}")

    def stop_progress(self) -> None:
        """Remove the bar, if there is one."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, done: float, total: float | None, unit: str, facts: Mapping[str, float | str]) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[shown]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task(self.command, total=total, shown="")
            self._bar.start()
        of = f"/{total:,.0f}" if total else ""
        task = self._bar.task_ids[0]
        self._bar.update(task, completed=done, total=total, shown=f"{done:,.0f}{of} {unit}{_facts(facts)}")


def _facts(facts: Mapping[str, float | str]) -> str:
    """`, loss 3.21, tokens/s 5,120` for progress lines."""
    shown = [f"{key} {value}" if isinstance(value, str) else f"{key} {value:,.4g}" for key, value in facts.items()]
    return "".join(f", {item}" for item in shown)


def _take_stdout() -> IO[str]:
    """The real stdout, for us alone: fd 1 then leads to stderr, so that no library can tear the stream."""
    sys.stdout.flush()
    real = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return real
