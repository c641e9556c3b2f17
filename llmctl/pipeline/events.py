"""`runs/<run-id>.jsonl`: what happened in a run, kept for failures too."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class EventLog:
    """Appends START, NOTE, COMPLETE or FAIL lines for one run."""

    path: Path

    def add(self, event: str, **facts: Any) -> None:
        """Append one event; the line is written in one call, so a kill cannot tear the one before it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps({"event": event, "time": now(), **facts}, sort_keys=True) + "\n")
