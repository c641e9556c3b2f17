"""The statistics of an artifact as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.config.errors import InputError
from llmctl.store.files import explained, publish

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BARS = 10  # of each chart
LONGEST_LABEL = 30  # characters
BLUE, ORANGE, GREY = "#3b6ea5", "#d9822b", "#666666"
SIZE_INCHES = (15.0, 10.0)
DOTS_PER_INCH = 120
MANY_SCRIPTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Arial Unicode MS",
    "Unifont",
)
UNITS = ("", "k", "M", "G", "T", "P")


def draw(figures: dict[str, Any], path: Path) -> None:
    """Write a PNG of what `report` gives.

    A character that no font of this machine has is drawn as a box.

    Raises:
        InputError: the file cannot be written there.
    """
    import warnings

    import matplotlib as mpl

    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent}", hint="make it first, or choose another path for --png")
    with mpl.rc_context({"font.family": _fonts()}), warnings.catch_warnings(), explained(str(path)):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = _figure(figures)
        with publish(path) as handle:
            figure.savefig(handle, format="png", dpi=DOTS_PER_INCH, metadata={"Software": "llmctl"})


def _figure(figures: dict[str, Any]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(
        figsize=SIZE_INCHES, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12, wspace=0.05, hspace=0.06)
    )
    charts = figure.subplots(2, 3)
    title = f"{label(figures['ref'], 60)}: {figures['documents']:,} documents, {short(figures['bytes'])}B of text"
    figure.suptitle(f"{title}, {short(figures['words'])} words", fontsize=16, fontweight="bold")
    _histogram(charts[0][0], figures["lengths"]["words"])
    for axes, name, heading in (
        (charts[0][1], "languages", "Languages"),
        (charts[0][2], "licenses", "Licences"),
        (charts[1][0], "domains", "Domains"),
        (charts[1][1], "sources", "Sources"),
    ):
        _bars(axes, figures[name], heading, figures["documents"])
    _ngrams(charts[1][2], figures["ngrams"])
    return figure


def _fonts() -> list[str]:
    """Matplotlib's own font, and those of this machine that know more scripts."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in MANY_SCRIPTS if name in installed)]


def short(number: float) -> str:
    """`1.2 M`, in powers of 1,000."""
    unit = 0
    while number >= 999.5 and unit < len(UNITS) - 1:
        number, unit = number / 1000, unit + 1
    digits = (f"{number:.1f}" if unit and number < 99.5 else f"{number:.0f}").removesuffix(".0")
    return f"{digits} {UNITS[unit]}" if UNITS[unit] else f"{digits} "


def share_of(count: int, whole: int) -> str:
    """`12.3%`; what would round to nothing is `<0.1%`."""
    return "<0.1%" if 0 < count < 0.0005 * whole else f"{count / whole:.1%}"


def label(text: str, longest: int = LONGEST_LABEL) -> str:
    """A value as the name of a bar: one line, not too long, and drawn as it is (`$` would start a formula)."""
    line = " ".join(text.split()) or "not stated"
    line = line if len(line) <= longest else f"{line[: longest - 1]}…"
    return line.replace("$", r"\$")


def _histogram(axes: Axes, lengths: dict[str, Any]) -> None:
    """Documents by length, in bins of powers of two."""
    bins = lengths["histogram"]
    places = range(len(bins))
    axes.bar(places, [one["count"] for one in bins], width=0.92, color=BLUE)
    names = [short(one["from"]).strip() for one in bins]
    every = max(1, -(-len(bins) // 6))
    axes.set_xticks([place - 0.5 for place in places][::every], names[::every])
    for share, where in ((0.25, "p25"), (0.5, "p50"), (0.75, "p75"), (0.95, "p95")):
        axes.axvline(_place(bins, lengths[where]), color=ORANGE, linewidth=2 if share == 0.5 else 1, linestyle="--")
    axes.set_title(f"Words per document, median {lengths['p50']:,}", fontsize=13, loc="left")
    axes.set_xlabel("words; dashed: quartiles and 95 %", color=GREY)
    axes.set_ylabel("documents", color=GREY)
    axes.yaxis.set_major_formatter(lambda value, _: short(value).strip())
    _plain(axes)


def _place(bins: Sequence[dict[str, int]], value: int) -> float:
    """Where a value lies on an axis whose unit is one bin."""
    for place, one in enumerate(bins):
        if value < one["below"]:
            return place - 0.5 + (value - one["from"]) / (one["below"] - one["from"])
    return len(bins) - 0.5


def _bars(axes: Axes, listed: dict[str, Any], heading: str, documents: int) -> None:
    """The commonest values of a property, with their share of the documents."""
    top = listed["top"][:BARS]
    counts = [one["documents"] for one in top]
    notes = [f"{short(count).strip()}  {share_of(count, documents)}" for count in counts]
    _horizontal(axes, [one["value"] for one in top], counts, notes)
    axes.set_title(f"{heading} ({listed['different']:,})", fontsize=13, loc="left")
    if listed["different"] > len(top):
        axes.set_xlabel(f"these {len(top)} are {share_of(sum(counts), documents)} of the documents", color=GREY)


def _ngrams(axes: Axes, ngrams: Sequence[dict[str, Any]]) -> None:
    """The most frequent n-grams of the greatest length that was counted and found."""
    found = [one for one in ngrams if one["top"]]
    if not found:
        axes.set_axis_off()
        return
    longest = max(found, key=lambda one: one["words"])
    top = longest["top"][:BARS]
    counts = [one["count"] for one in top]
    _horizontal(axes, [one["text"] for one in top], counts, [short(count).strip() for count in counts])
    axes.set_title(f"Most frequent {longest['words']}-grams", fontsize=13, loc="left")
    if longest["error"]:
        axes.set_xlabel(f"counts are at most {longest['error']:,} too low", color=GREY)


def _horizontal(axes: Axes, names: Sequence[str], counts: Sequence[int], notes: Sequence[str]) -> None:
    """Bars from the top down, each with its name on the left and its figure at its end."""
    places = range(len(names))
    bars = axes.barh(places, counts, color=BLUE, height=0.72)
    axes.set_yticks(places, [label(name) for name in names])
    axes.set_ylim(BARS - 0.4, -0.6)  # as many places in every chart, so that bars are equally thick
    axes.bar_label(bars, labels=list(notes), padding=4, fontsize=9, color=GREY)
    axes.set_xlim(0, max(counts) * 1.32)
    axes.set_xticks([])
    for side in ("bottom", "left"):
        axes.spines[side].set_visible(False)
    _plain(axes)
    axes.tick_params(axis="y", length=0)


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=10)
