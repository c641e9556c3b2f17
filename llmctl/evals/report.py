"""An evaluation to read: tables in Markdown and HTML, with one picture of what can be drawn."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.config.evals import PICTURE_FILE, REPORT_FILES
from llmctl.evals.measure import Measured
from llmctl.store.files import explained, publish_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#3b6ea5", "#d9822b", "#666666"
ACCURACIES = ("acc", "acc_norm", "exact_match", "math_equal", "pass@1", "mc2")
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)
HEADINGS = ("figure", "value", "± stderr", "chance", "untrained", "unrounded", "items")


def write(directory: Path, title: str, tasks: Mapping[str, Mapping[str, Any]], measured: Sequence[Measured]) -> None:
    """Write `report.md`, `report.html` and, where anything can be drawn, `report.png`.

    Args:
        directory: `job.out`.
        title: what was measured.
        tasks: figures by task and metric, as in results.json.
        measured: the checkpoint's tasks.
    """
    rows = [_row(f"{task}.{metric}", entry) for task, metrics in tasks.items() for metric, entry in metrics.items()]
    notes = [
        f"{one.task}: {count} of {len(one.samples)} items left out: {reason}"
        for one in measured
        for reason, count in sorted(one.skipped.items())
    ]
    picture = _picture(tasks, measured)
    markdown, page = REPORT_FILES
    with explained(str(directory)):
        if picture:
            publish_bytes(directory / PICTURE_FILE, picture)
        publish_bytes(directory / markdown, _markdown(title, rows, notes, has_picture=bool(picture)).encode())
        publish_bytes(directory / page, _html(title, rows, notes, picture).encode())


def _row(name: str, entry: Mapping[str, Any]) -> list[str]:
    keys = ("value", "stderr", "chance", "untrained", "unrounded")
    return [name, *("" if entry.get(key) is None else f"{entry[key]:.4f}" for key in keys), f"{entry['n']:,}"]


def _markdown(title: str, rows: Sequence[Sequence[str]], notes: Sequence[str], *, has_picture: bool) -> str:
    lines = [f"# {title}", "", f"| {' | '.join(HEADINGS)} |", f"|---|{'---:|' * (len(HEADINGS) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", *(f"- {note}" for note in notes)]
    lines += ["", f"![figures]({PICTURE_FILE})"] if has_picture else []
    return "\n".join(lines) + "\n"


def _html(title: str, rows: Sequence[Sequence[str]], notes: Sequence[str], picture: bytes) -> str:
    def cells(kind: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row) + "</tr>"

    shown = base64.b64encode(picture).decode()
    image = f'<img alt="figures" src="data:image/png;base64,{shown}">' if picture else ""
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    table = "\n".join([cells("th", HEADINGS), *(cells("td", row) for row in rows)])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>\n<table>{table}</table>\n<ul>{items}</ul>\n{image}</html>\n"
    )


def _picture(tasks: Mapping[str, Mapping[str, Any]], measured: Sequence[Measured]) -> bytes:
    """A PNG of accuracies, calibration, loss by position and accuracy against tokens, as far as there are such."""
    bars = [
        (f"{task}.{metric}", entry)
        for task, metrics in tasks.items()
        for metric, entry in metrics.items()
        if metric.partition(",")[0] in ACCURACIES and "/" not in task
    ]
    curves = [(f"{one.task}.{name}", name, table) for one in measured for name, table in one.curves.items()]
    if not bars and not curves:
        return b""
    from matplotlib.figure import Figure

    count = bool(bars) + len(curves)
    figure = Figure(figsize=(6.0 * min(count, 3), 4.2 * -(-count // 3)), layout="constrained")
    charts = iter(figure.subplots(-(-count // 3), min(count, 3), squeeze=False).flat)
    if bars:
        _bars(next(charts), bars)
    for title, name, table in curves:
        _curve(next(charts), title, name, table)
    for empty in charts:
        empty.set_axis_off()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": "llmctl"})
    return content.getvalue()


def _bars(axes: Axes, bars: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    places = range(len(bars))
    errors = [entry.get("stderr") or 0.0 for _, entry in bars]
    axes.barh(places, [entry["value"] for _, entry in bars], xerr=errors, color=BLUE, ecolor=GREY, capsize=3)
    for place, (_, entry) in zip(places, bars, strict=True):
        if entry.get("chance") is not None:
            axes.plot([entry["chance"]] * 2, [place - 0.4, place + 0.4], color=ORANGE, linewidth=2)
    axes.set_yticks(places, [name for name, _ in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title("Share that is right; guessing in orange")


def _curve(axes: Axes, title: str, name: str, table: Sequence[Sequence[float]]) -> None:
    if name == "ece":
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
        axes.plot([row[0] for row in table], [row[1] for row in table], "o-", color=BLUE)
        axes.set_xlabel("confidence")
        axes.set_ylabel("share that is right")
    elif name == "loss_by_position":
        axes.step([row[0] + 1 for row in table], [row[2] for row in table], where="post", color=BLUE)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("place in the context, in tokens")
        axes.set_ylabel("nats per token")
    else:
        axes.plot([row[1] for row in table], [row[2] for row in table], "o-", color=BLUE)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("tokens for each item")
        axes.set_ylabel("share that is right by vote")
    axes.set_title(title)
