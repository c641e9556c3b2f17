"""`runs/<run-id>.jsonl`: what happened in a run, kept for failures too."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmctl.config.errors import LlmctlError
from llmctl.pipeline.job import Progress


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class EventLog:
    """Appends START, PART, NOTE, COMPLETE or FAIL lines for one run."""

    path: Path

    def add(self, event: str, **facts: Any) -> None:
        """Append one event; the line is written in one call, so a kill cannot tear the one before it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps({"event": event, "time": now(), **facts}, sort_keys=True, default=str) + "\n")

    def fail(self, error: BaseException, last: Mapping[str, Any]) -> None:
        """Append the end of a run that failed.

        Args:
            error: what ended it; its traceback is kept.
            last: the last report of progress.
        """
        told = error.one_line if isinstance(error, LlmctlError) else repr(error)
        self.add("FAIL", error=told, progress=dict(last), traceback=traceback.format_exception(error))


@dataclass
class Overheard:
    """A `Progress` that passes everything on, logs the notes, and remembers the last report.

    Attributes:
        progress: whom it speaks to.
        events: the log of the run.
        last: the last report; empty before the first one.
    """

    progress: Progress
    events: EventLog
    last: dict[str, Any] = field(default_factory=dict)

    def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
        """Remember the report, and pass it on."""
        self.last = {"done": done, "total": total, "unit": unit, **facts}
        self.progress.update(done, total, unit, **facts)

    def note(self, text: str) -> None:
        """Log the note, and pass it on."""
        self.events.add("NOTE", text=text)
        self.progress.note(text)
