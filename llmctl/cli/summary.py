"""How an artifact is shown to a person: a headline, its totals, where it lies, what comes next."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmctl.data.funnel import FUNNEL_FILE, excerpt, read_funnel
from llmctl.store.artifact import Artifact

if TYPE_CHECKING:  # a headline in a pipe needs no Rich
    from rich.console import RenderableType
    from rich.table import Table

HEADLINE_FIGURES = 4
EXAMPLE_CHARACTERS = 50
BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")


def headline(artifact: Artifact, *, cached: bool, seconds: float) -> str:
    """One line: `web.clean@v1: 4,120 documents, 3.1 MB (cached)`."""
    shown = [f"{figure(value)} {key}" for key, value in leading(artifact)]
    how = "cached" if cached else f"{seconds:.1f} s"
    return f"{artifact.ref}: {', '.join(shown)} ({how})"


def summary(artifact: Artifact, following: str) -> Iterator[RenderableType]:
    """Totals as a table, the path, and the command that usually comes next."""
    yield totals_table(artifact)
    yield from funnel_table(artifact)
    if artifact.kind == "eval":
        yield from results_tables(artifact)
    yield f"path  {artifact.path}"
    if artifact.kind == "adapter":
        yield f"next  llmctl merge {base_of(artifact)} {artifact.name}"
    elif following:
        yield f"next  llmctl {following} {artifact.name}"


def base_of(adapter: Artifact) -> str:
    """What an adapter is merged into, as its run named it."""
    base = adapter.manifest.semantic.get("base")
    return next((given.ref for given in adapter.manifest.inputs.values() if given.digest == base), "CHECKPOINT")


def totals_table(artifact: Artifact) -> Table:
    """Every total of the manifest, one a line; digests are for machines, and the funnel has its own table."""
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in artifact.manifest.totals.items():
        if not key.endswith("_digest") and not (key.startswith("dropped.") and artifact.holds(FUNNEL_FILE)):
            table.add_row(key, figure(value))
    return table


def funnel_table(artifact: Artifact) -> Iterator[Table]:
    """What each rule of `clean` dropped, in order, with an example; nothing where the artifact has no funnel."""
    from rich.table import Table
    from rich.text import Text

    funnel = read_funnel(artifact)
    if funnel is None or not funnel["rules"]:
        return
    table = Table(box=None, pad_edge=False, title_justify="left")
    for column in ("rule", "in", "dropped", "out", "size", "for example"):
        left = column in ("rule", "for example")  # on a narrow terminal the example gives way, never a figure
        table.add_column(column, justify="left" if left else "right", no_wrap=column != "for example")
    for row in funnel["rules"]:
        example = row["example"] or {}
        shown = f"{example['value']:.4g}  {excerpt(example['text'], EXAMPLE_CHARACTERS)}" if example else ""
        counts = (figure(row[key]) for key in ("in", "dropped", "out"))
        table.add_row(row["rule"], *counts, byte_size(row["bytes"]), Text(shown, no_wrap=True, overflow="ellipsis"))
    yield table


def results_tables(artifact: Artifact) -> Iterator[RenderableType]:
    """The tasks of an `eval` artifact, one table: metric, value, standard error, chance, untrained."""
    from rich.table import Table

    from llmctl.config.evals import RESULTS_FILE

    results = json.loads(artifact.file(RESULTS_FILE).read_text(encoding="utf-8"))
    table = Table(pad_edge=False)
    for column in ("task", "metric", "value", "± stderr", "chance", "untrained", "n"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for task, metrics in results["tasks"].items():
        for metric, entry in metrics.items():
            cells = [entry.get(key) for key in ("value", "stderr", "chance", "untrained", "n")]
            table.add_row(task, metric, *("" if cell is None else figure(cell) for cell in cells))
    yield table


def figure(value: float | str) -> str:
    """A number as people read it; text as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if abs(value) < 1e5 else f"{value:,.0f}"


def byte_size(count: float) -> str:
    """`3.1 MB`, in powers of 1,000."""
    for unit in BYTE_UNITS:
        if count < 1000 or unit == BYTE_UNITS[-1]:
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def leading(artifact: Artifact, most: int = HEADLINE_FIGURES) -> list[tuple[str, int | float]]:
    """The first few figures; counts of parts (`dropped.too_short`) only where there is nothing else."""
    figures = [(key, value) for key, value in artifact.manifest.totals.items() if not isinstance(value, str)]
    return ([(key, value) for key, value in figures if "." not in key] or figures)[:most]
