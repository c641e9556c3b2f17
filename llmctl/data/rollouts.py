"""Rollouts as a run keeps them: what a policy answered, and what it got for it."""

from __future__ import annotations

from typing import Any, Final

from llmctl.config.errors import InputError
from llmctl.data.tables import read_parquet
from llmctl.store.artifact import Artifact

FILE: Final = "rollouts/part-00000.parquet"
TOOL: Final = "tool"  # role of a turn that was not drawn
SHOWN: Final = ("prompt_id", "sample", "prompt", "answer", "completion", "truncated", "reward", "advantage", "missing")


def has_rollouts(artifact: Artifact) -> bool:
    """Whether a run kept what it learned from."""
    return artifact.holds(FILE)


def spoken(row: dict[str, Any]) -> list[str]:
    """What was said to a prompt, a line of its own for each turn; what a tool gave is marked as such."""
    turns = row.get("turns") or [{"role": "assistant", "text": row["completion"], "failed": False}]
    return [f"{_mark(turn)} {turn['text']}" for turn in turns]


def _mark(turn: dict[str, Any]) -> str:
    if turn["role"] != TOOL:
        return "->"
    return "<- [tool failed]" if turn["failed"] else "<- [tool]"


def answers_of_step(artifact: Artifact, step: int) -> list[dict[str, Any]]:
    """The answers of the rollout that step `step` (from 1) learned from, all of them, in their order.

    Raises:
        InputError: the run has no such step.
    """
    steps = int(artifact.manifest.totals.get("steps", 0))
    if not 1 <= step <= steps:
        raise InputError(f"{artifact.ref} has no step {step}", hint=f"its steps are 1 to {steps}")
    found: list[dict[str, Any]] = []
    made = 0
    for batch in read_parquet(artifact.file(FILE)):
        for row in batch.to_pylist():
            if made < row["step"] <= step:
                made, found = row["step"], []
            if row["step"] == made:
                found.append(row)
    return found
