"""Curves of runs, drawn to a file and in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.config.errors import InputError, UsageError
from llmctl.store.files import explained, publish

SIZE_INCHES = (7.5, 4.2)  # of one chart
DOTS_PER_INCH = 120
COLOURS = ("#3b6ea5", "#d9822b", "#4a8f5b", "#a5493b", "#7a5ba5", "#666666")
AXES = ("step", "tokens", "elapsed_s")
LOGARITHMIC = 100.0  # where the largest value is this many times the smallest, the axis is logarithmic


@dataclass(frozen=True)
class Curve:
    """One figure of one run.

    Attributes:
        label: of the run.
        x: steps, tokens or seconds, rising.
        y: the figure.
    """

    label: str
    x: list[float]
    y: list[float]


def curves_of(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], figures: Sequence[str], axis: str, smooth: float
) -> dict[str, list[Curve]]:
    """The curves of every figure, a run at a time.

    Args:
        runs: rows of metrics by the label of their run.
        figures: which ones to draw, as the rows name them.
        axis: `step`, `tokens` or `elapsed_s`.
        smooth: weight of the past in an exponential average, 0 for none.

    Raises:
        UsageError: no run has such a figure; the ones that there are are named.
    """
    found: dict[str, list[Curve]] = {}
    for figure in figures:
        for label, rows in runs.items():
            points = [(row[axis], row[figure]) for row in rows if figure in row and axis in row]
            if points:
                values = _smoothed([float(y) for _, y in points], smooth)
                found.setdefault(figure, []).append(Curve(label, [float(x) for x, _ in points], values))
        if figure not in found:
            known = sorted({name for rows in runs.values() for row in rows for name in row} - {*AXES, "rows"})
            raise UsageError(f"no run has a figure {figure}", hint=f"known: {', '.join(known)}")
    return found


def _smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Exponential average, its start corrected as Adam's is."""
    made, past = [], 0.0
    for count, value in enumerate(values, start=1):
        past = weight * past + (1 - weight) * value
        made.append(past / (1 - weight**count))
    return made


def draw(curves: Mapping[str, Sequence[Curve]], axis: str, path: Path) -> None:
    """Write a PNG, one chart for each figure.

    Raises:
        InputError: the file cannot be written there.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent}", hint="make it first, or choose another path for --png")
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(SIZE_INCHES[0] * columns, SIZE_INCHES[1] * rows), layout=ConstrainedLayoutEngine())
    charts = figure.subplots(rows, columns, squeeze=False).flatten()
    for chart, (name, drawn) in zip(charts, curves.items(), strict=False):
        for number, curve in enumerate(drawn):
            marker = "o" if len(curve.x) < 2 else None
            colour = COLOURS[number % len(COLOURS)]
            chart.plot(curve.x, curve.y, label=curve.label.replace("$", r"\$"), color=colour, marker=marker)
        chart.set_title(name, loc="left", fontsize=13)
        chart.set_xlabel(axis, color="#666666")
        if _spans_magnitudes(drawn):
            chart.set_yscale("log")
        for side in ("top", "right"):
            chart.spines[side].set_visible(False)
        chart.grid(alpha=0.25)
        chart.legend(frameon=False)
    for spare in charts[len(curves) :]:
        spare.set_axis_off()
    with explained(str(path)), publish(path) as handle:
        figure.savefig(handle, format="png", dpi=DOTS_PER_INCH, metadata={"Software": "llmctl"})


def text(curves: Mapping[str, Sequence[Curve]], axis: str, width: int, height: int) -> str:
    """The same for a terminal, without colours or other control codes.

    Args:
        curves: what to draw.
        axis: the name of the x axis.
        width: of a chart, in characters.
        height: of a chart, in lines.
    """
    import plotext

    charts = []
    for name, drawn in curves.items():
        plotext.clear_figure()
        plotext.theme("clear")
        plotext.plot_size(width, height)
        for number, curve in enumerate(drawn):
            plotext.plot(curve.x, curve.y, label=curve.label, marker="braille" if number == 0 else "ox+*#"[number % 5])
        plotext.title(name)
        plotext.xlabel(axis)
        if _spans_magnitudes(drawn):
            plotext.yscale("log")
        charts.append(plotext.uncolorize(plotext.build()))
    plotext.clear_figure()
    return "\n\n".join(charts)


def _spans_magnitudes(curves: Sequence[Curve]) -> bool:
    values = [value for curve in curves for value in curve.y]
    return min(values) > 0 and max(values) / min(values) > LOGARITHMIC
