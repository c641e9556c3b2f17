"""The gates that the figures of an evaluation must pass."""

from __future__ import annotations

import difflib

from llmctl.config.errors import GateError, UsageError
from llmctl.config.evals import EvalConfig
from llmctl.store.artifact import Artifact

NO_FIGURE = ("stderr", "scored", "limit", "chance")


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
    low: list[str] = []
    for gate, least in config.min.items():
        held = {name: value for name, value in figures.items() if _names(gate, name)}
        if not held:
            close = difflib.get_close_matches(gate, figures, n=1)
            raise UsageError(
                f"min names {gate!r}, and there is no such figure",
                hint=f"did you mean {close[0]}?" if close else f"figures: {', '.join(figures)}",
            )
        low += [f"{name} is {value:.4g}, {least:g} is wanted" for name, value in held.items() if value < least]
    if low:
        raise GateError("; ".join(low), hint=f"the figures are in {artifact.ref}")


def _names(gate: str, figure: str) -> bool:
    """Whether a gate means a figure of the checkpoint itself: `task.metric`, or the metric of any whole task."""
    task, _, metric = figure.partition(".")
    if "." in gate:
        return gate == figure
    return "/" not in task and metric.partition(",")[0] == gate
