"""Packed rows as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmctl.config.errors import InputError
from llmctl.data.stats.picture import BLUE, DOTS_PER_INCH, GREY, ORANGE, label, short
from llmctl.store.files import explained, publish

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE_INCHES = (15.0, 9.0)
PALETTE = "tab20"
COLOURS = 20


def draw_rows(figures: dict[str, Any], path: Path) -> None:
    """Write a PNG of what `measure_rows` gives.

    Raises:
        InputError: the file cannot be written there.
    """
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent}", hint="make it first, or choose another path for --png")
    with explained(str(path)):
        figure = _figure(figures)
        with publish(path) as handle:
            figure.savefig(handle, format="png", dpi=DOTS_PER_INCH, metadata={"Software": "llmctl"})


def _figure(figures: dict[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    train = figures["splits"]["train"]
    title = f"{label(figures['ref'], 60)}: {train['rows']:,} rows of {figures['seq_len']:,} tokens"
    figure.suptitle(f"{title}, {train['padding']:.3%} padding", fontsize=16, fontweight="bold")
    charts = figure.subplots(2, 2)
    _rows(charts[0][0], figures["first_rows"])
    _histogram(charts[0][1], train["piece_tokens"], "Tokens per piece", "pieces")
    _histogram(charts[1][0], train["pieces_per_row"], "Pieces per row", "rows")
    if figures["sources"]:
        _shares(charts[1][1], figures["sources"])
    else:
        _histogram(charts[1][1], train["document_tokens"], "Tokens per document", "documents")
    return figure


def _rows(axes: Axes, rows: list[list[int]]) -> None:
    """The first rows of training: a colour for each piece, white where there is padding."""
    pieces = np.array(rows)
    shifted = np.ma.masked_where(pieces < 0, (pieces + 5 * np.arange(len(pieces))[:, None]) % COLOURS)
    axes.imshow(shifted, aspect="auto", interpolation="nearest", cmap=PALETTE, vmin=0, vmax=COLOURS - 1)
    axes.set_title(f"The first {len(pieces)} rows of seed 0: a colour for each piece", fontsize=13, loc="left")
    axes.set_xlabel("place in the row", color=GREY)
    axes.set_yticks([])


def _histogram(axes: Axes, spread: dict[str, Any], title: str, what: str) -> None:
    bins = spread["histogram"]
    axes.bar(range(len(bins)), [one["count"] for one in bins], width=0.92, color=BLUE)
    every = max(1, -(-len(bins) // 8))
    places = [place - 0.5 for place in range(len(bins))]
    axes.set_xticks(places[::every], [short(one["from"]).strip() for one in bins][::every])
    axes.set_title(f"{title}, median {spread['p50']:,}", fontsize=13, loc="left")
    axes.set_ylabel(what, color=GREY)
    axes.yaxis.set_major_formatter(lambda value, _: short(value).strip())
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _shares(axes: Axes, sources: list[dict[str, Any]]) -> None:
    """The share of each source by stage, one bar on top of the other."""
    from matplotlib import colormaps

    stages = range(len(sources[0]["stages"]))
    bottom = np.zeros(len(stages))
    colours = [BLUE, ORANGE, *colormaps["Set2"].colors]  # type: ignore[attr-defined]
    for number, one in enumerate(sources):
        heights = np.array([stage["share"] for stage in one["stages"]])
        axes.bar(
            stages, heights, bottom=bottom, width=0.7, color=colours[number % len(colours)], label=label(one["source"])
        )
        bottom += heights
    spans = [stage["tokens"] for stage in sources[0]["stages"]]
    axes.set_xticks(stages, ["to the end" if span is None else f"{short(span).strip()} tokens" for span in spans])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    axes.set_title("Share of the training tokens, by stage", fontsize=13, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
