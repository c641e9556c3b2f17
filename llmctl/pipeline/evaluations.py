"""The gates that the figures of an evaluation must pass."""

from __future__ import annotations

import difflib

from llmctl.config.errors import GateError, UsageError
from llmctl.config.evals import EvalConfig
from llmctl.store.artifact import Artifact

NO_FIGURE = ("stderr", "scored", "limit", "chance", "weights_bytes", "tokens_per_s", "contaminated", "learned_from")


def check_figures(config: EvalConfig, artifact: Artifact) -> None:
    """Hold every figure that a gate names against it; `acc` is that of each task, `piqa.acc` of one.

    Raises:
        GateError: a figure is below, with all that are.
        UsageError: a gate names no figure.
    """
    figures = {
        name: value
        for name, value in artifact.manifest.totals.items()
        if isinstance(value, int | float) and name.rpartition(".")[2] not in NO_FIGURE and ".skipped." not in name
    }
    if config.forbid_contamination:
        _check_clean(artifact)
    low: list[str] = []
    for gate, least in config.min.items():
        held = {name: value for name, value in figures.items() if names_figure(gate, name)}
        if not held:
            close = difflib.get_close_matches(gate, figures, n=1)
            raise UsageError(
                f"min names {gate!r}, and there is no such figure",
                hint=f"did you mean {close[0]}?" if close else f"figures: {', '.join(figures)}",
            )
        low += [f"{name} is {value:.4g}, {least:g} is wanted" for name, value in held.items() if value < least]
    if low:
        raise GateError("; ".join(low), hint=f"the figures are in {artifact.ref}")


def names_figure(gate: str, figure: str) -> bool:
    """Whether a gate means a figure: `task.metric`, or the metric of any whole task; with every filter, or with one."""
    task, _, metric = figure.partition(".")
    if "." in gate:
        return gate in (figure, figure.partition(",")[0])
    return "/" not in task and gate in (metric, metric.partition(",")[0])


def _check_clean(artifact: Artifact) -> None:
    totals = artifact.manifest.totals
    if not totals.get("learned_from"):
        raise GateError(
            "contamination is forbidden, and what the checkpoint has learned from is not in the store",
            hint="evaluate where it was trained, or without --forbid-contamination",
        )
    if count := totals.get("contaminated", 0):
        raise GateError(
            f"{count} items stand in what the checkpoint has learned from",
            hint=f"contamination-00000.parquet of {artifact.ref} names them; llmctl decontaminate takes them out",
        )
