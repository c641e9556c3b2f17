"""Evaluations of a tiny checkpoint, through the pipeline into a store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llmctl.config.evals import EvalConfig
from llmctl.config.inout import ImportConfig
from llmctl.pipeline.execute import Call, execute
from llmctl.pipeline.job import Silent
from llmctl.pipeline.stages import stage_named
from llmctl.store.artifact import Artifact, FileInput, Input
from llmctl.store.store import Store
from tests.evals.test_stage import Notes
from tests.evals.tiny import file_of, text

ROWS = [{"question": text(n, 5), "options": [text(3 * n, 2), text(3 * n + 1, 3)], "right": n % 2} for n in range(20)]


def imported(checkpoint: Artifact, store: Store) -> None:
    """Put the checkpoint into a store, as `tiny`, without a process for it."""
    config = ImportConfig.model_validate({"sources": [str(checkpoint.data)]})
    execute(Call(stage_named("import"), config, {}, name="tiny"), store, Silent())


class Evals:
    """Evaluations into one store."""

    def __init__(self, root: Path, checkpoint: Artifact) -> None:
        self.store, self.checkpoint, self.notes = Store.open(root, create=True), checkpoint, Notes()

    def run(
        self, config: Mapping[str, Any], rows: Any = ROWS, beside: Mapping[str, Input] | None = None, **data: FileInput
    ) -> Artifact:
        """Evaluate; `rows` are the data of the task in the file, where no other are given."""
        path = self.store.root.parent / "rows.jsonl"
        name = Path(str(config.get("tasks", "mine"))).stem
        given = {f"data.{name}": value for name, value in data.items()} or {f"data.{name}": file_of(path, rows)}
        given = {**given, **(beside or {})}
        inputs = given if "server" in config else {"input": self.checkpoint, **given}
        settings = EvalConfig.model_validate({"device": "cpu", "tasks": "mine", **config})
        return execute(Call(stage_named("eval"), settings, inputs), self.store, self.notes).artifact


def samples(artifact: Artifact) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(artifact.file("samples-00000.parquet")).to_pylist()
    return rows
