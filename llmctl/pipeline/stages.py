"""The line in one table: every stage, in the order in which data flows through them."""

from __future__ import annotations

from llmctl.config.errors import UsageError
from llmctl.pipeline.stage import Stage
from llmctl.pipeline.stages_data import DATA_STAGES
from llmctl.pipeline.stages_models import MODEL_STAGES
from llmctl.pipeline.stages_tokens import TOKEN_STAGES

STAGES: dict[str, Stage] = {stage.command: stage for stage in (*DATA_STAGES, *TOKEN_STAGES, *MODEL_STAGES)}


def stage_named(command: str) -> Stage:
    """The stage called `command`; a `UsageError` names the known ones."""
    if command not in STAGES:
        raise UsageError(f"no stage is called {command!r}", hint=f"known: {', '.join(STAGES)}")
    return STAGES[command]
