"""The curves of a run, as its `metrics.jsonl` holds them: one JSON object a line, in order of steps."""

from __future__ import annotations

import io
import json
from typing import Any

from llmctl.config.errors import InputError, IntegrityError
from llmctl.store.artifact import Artifact
from llmctl.store.layout import METRICS_FILE


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    """Every row that a run logged by steps.

    Raises:
        InputError: the run has no steps.
        IntegrityError: a line is no JSON object.
    """
    path = artifact.path / METRICS_FILE
    rows: list[dict[str, Any]] = []
    with open(path, encoding="utf-8") if path.is_file() else io.StringIO() as handle:
        for number, line in enumerate(handle, start=1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise IntegrityError(f"{path}, line {number} is no JSON object", hint="make the artifact anew: --force")
            if "step" in row:
                rows.append(row)
    if not rows:
        raise InputError(f"{artifact.ref} is a {artifact.kind} artifact without steps", hint="give what was trained")
    return rows


def incidents_of(artifact: Artifact) -> list[dict[str, Any]]:
    """The steps that the guards of a training run did not trust: `step`, `incident`, `action`, `rows`."""
    return [row for row in rows_of(artifact) if "incident" in row]
