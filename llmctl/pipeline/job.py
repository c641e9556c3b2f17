"""What a stage is given and what it gives back. A stage body is one function: `run(job) -> Product`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from llmctl.config.base import Config
from llmctl.config.errors import InputError
from llmctl.store.artifact import Artifact, FileInput, Input

C = TypeVar("C", bound=Config)


class Progress(Protocol):
    """Where a stage says how far it is. The CLI draws it; tests record it."""

    def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
        """Report that `done` of `total` (None: unknown) `unit`s are finished, with figures worth seeing."""
        ...

    def note(self, text: str) -> None:
        """Tell the user one line that they should know: a fallback, a warning, a figure."""
        ...


class Silent:
    """A `Progress` that says nothing."""

    def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
        """Ignore the report."""

    def note(self, text: str) -> None:
        """Ignore the note."""


@dataclass(frozen=True)
class FileFacts:
    """What a stage knows of one file that it wrote, beyond its bytes."""

    rows: int | None = None
    tokens: int | None = None
    split: str | None = None


@dataclass(frozen=True)
class Product:
    """What a stage made, for the manifest. The files themselves lie under `job.out`.

    Attributes:
        schema: the layout's name and version, such as `llmctl.documents/1`.
        semantic: facts that readers rely on (dtype, vocabulary size, tokenizer digest); part of the digest.
        totals: counts and measurements to show (rows, tokens, `dropped.too_short`); not part of the digest.
        files: facts by path relative to `job.out`; a file without facts need not be named.
        license: SPDX identifiers found in the data; the inputs' are added.
    """

    schema: str
    semantic: dict[str, Any] = field(default_factory=dict)
    totals: dict[str, int | float | str] = field(default_factory=dict)
    files: dict[str, FileFacts] = field(default_factory=dict)
    license: tuple[str, ...] = ()


def _no_event(event: str, **facts: Any) -> None:
    """Where a job runs outside the pipeline: a rank, a test."""


@dataclass(frozen=True)
class Job(Generic[C]):
    """One run of one stage.

    Attributes:
        config: validated, frozen.
        inputs: artifacts and files by role; the role `input` is what the pipe or the argument gave.
        out: directory for published files (`<run>/data`); always empty at the start.
        work: directory for resumable state; kept after a kill, removed at the commit.
        metrics_file: `<run>/metrics.jsonl`.
        progress: where to report.
        nested: runs another stage through the cache and returns its artifact (`tokenize` trains a tokenizer so).
        event: appends an event with its facts to the run's log, `runs/<run-id>.jsonl`.
        fetched: what the stage's `fetch` gave; None where it has none.
        promised: the digests that the action key was made from, by role, those of sources included; empty where
            a body is called outside the pipeline.
    """

    config: C
    inputs: Mapping[str, Input]
    out: Path
    work: Path
    metrics_file: Path
    progress: Progress
    nested: Callable[[str, Config, Mapping[str, Input]], Artifact]
    event: Callable[..., None] = _no_event
    fetched: Any = None
    promised: Mapping[str, str] = field(default_factory=dict)

    def artifact(self, role: str = "input") -> Artifact:
        """The input of `role`, which must be an artifact of this store."""
        given = self.inputs.get(role)
        if not isinstance(given, Artifact):
            shown = given.ref if isinstance(given, FileInput) else "nothing"
            raise InputError(f"{role} must be an artifact, got {shown}", hint="see llmctl ls")
        return given

    def group(self, role: str) -> dict[str, Input]:
        """The inputs of a role that takes many, by their own names, sorted."""
        head = f"{role}."
        return {key.removeprefix(head): self.inputs[key] for key in sorted(self.inputs) if key.startswith(head)}

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to the run's metrics.

        Raises:
            ValueError: a figure is not finite; what is undefined is left out.
        """
        with open(self.metrics_file, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, allow_nan=False) + "\n")
