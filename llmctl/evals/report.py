"""An evaluation to read: tables in Markdown and HTML, with one picture of what can be drawn."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
SPENT = ("chosen by", "texts", "budget", "tokens", "right", "± stderr", "items")
HEADINGS = ("figure", "value", "± stderr", "chance", "untrained", "unrounded", "items")


@dataclass(frozen=True)
class Table:
    """A table with its title; the first column holds names."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def write(
    directory: Path,
    title: str,
    tasks: Mapping[str, Mapping[str, Any]],
    measured: Sequence[Measured],
    weights: Sequence[Table] = (),
) -> None:
    """Write `report.md`, `report.html` and, where anything can be drawn, `report.png`.

    Args:
        directory: `job.out`.
        title: what was measured.
        tasks: figures by task and metric, as in results.json.
        measured: the checkpoint's tasks.
        weights: what rounding them costs and saves, where that was measured.
    """
    rows = [_row(f"{task}.{metric}", entry) for task, metrics in tasks.items() for metric, entry in metrics.items()]
    notes = [
        f"{one.task}: {count} of {len(one.samples)} items left out: {reason}"
        for one in measured
        for reason, count in sorted(one.skipped.items())
    ]
    tables = [Table(title, HEADINGS, rows), *weights, *(_spent(one) for one in measured if "spent" in one.curves)]
    picture = _picture(tasks, measured)
    markdown, page = REPORT_FILES
    with explained(str(directory)):
        if picture:
            publish_bytes(directory / PICTURE_FILE, picture)
        publish_bytes(directory / markdown, _markdown(tables, notes, has_picture=bool(picture)).encode())
        publish_bytes(directory / page, _html(tables, notes, picture).encode())


def _spent(measured: Measured) -> Table:
    """What each way of choosing makes of so many tokens."""
    rows = [
        [
            row["method"], str(row["texts"]), str(row["budget"] or ""), f"{row['tokens']:.1f}",
            f"{row['value']:.4f}", "" if row["stderr"] is None else f"{row['stderr']:.4f}", f"{row['n']:,}",
        ]
        for row in measured.curves["spent"]
    ]  # fmt: skip
    return Table(f"{measured.task}: the share that is right, against the tokens of an item", SPENT, rows)


def _row(name: str, entry: Mapping[str, Any]) -> list[str]:
    keys = ("value", "stderr", "chance", "untrained", "unrounded")
    return [name, *("" if entry.get(key) is None else f"{entry[key]:.4f}" for key in keys), f"{entry['n']:,}"]


def _markdown(tables: Sequence[Table], notes: Sequence[str], *, has_picture: bool) -> str:
    lines: list[str] = []
    for depth, table in enumerate(tables):
        lines += [f"{'##' if depth else '#'} {table.title}", "", f"| {' | '.join(table.headings)} |"]
        lines += [f"|---|{'---:|' * (len(table.headings) - 1)}"]
        lines += [*(f"| {' | '.join(row)} |" for row in table.rows), ""]
        lines += [*(f"- {note}" for note in notes), ""] if notes and not depth else []
    lines += [f"![figures]({PICTURE_FILE})"] if has_picture else []
    return "\n".join(lines).rstrip() + "\n"


def _html(tables: Sequence[Table], notes: Sequence[str], picture: bytes) -> str:
    def cells(kind: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row) + "</tr>"

    def drawn(table: Table, level: int) -> str:
        rows = "\n".join([cells("th", table.headings), *(cells("td", row) for row in table.rows)])
        return f"<h{level}>{html.escape(table.title)}</h{level}>\n<table>{rows}</table>\n"

    shown = base64.b64encode(picture).decode()
    image = f'<img alt="figures" src="data:image/png;base64,{shown}">' if picture else ""
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    first, *others = tables
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(first.title)}</title>'
        f"<style>{STYLE}</style>{drawn(first, 1)}<ul>{items}</ul>\n"
        f"{''.join(drawn(table, 2) for table in others)}{image}</html>\n"
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


def _curve(axes: Axes, title: str, name: str, table: Sequence[Any]) -> None:
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
        for label, rows in _lines(table).items():
            errors = [row["stderr"] or 0.0 for row in rows]
            shares = [row["value"] for row in rows]
            axes.errorbar([row["tokens"] for row in rows], shares, yerr=errors, fmt="o-", capsize=3, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("tokens for each item")
        axes.set_ylabel("share that is right")
        axes.legend()
    axes.set_title(title)


def _lines(table: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows that are joined: one way of choosing over more and more texts, or the only text over the budgets."""
    lines: dict[str, list[Mapping[str, Any]]] = {}
    budgets = {row["budget"] for row in table}
    for row in table:
        several = row["method"] != "first" and len(budgets) > 1
        lines.setdefault(f"{row['method']}, {row['budget']} tokens" if several else row["method"], []).append(row)
    return lines
