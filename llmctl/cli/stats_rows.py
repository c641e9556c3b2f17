"""`llmctl stats` of packed rows, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

SHOWN = ("min", "p5", "p25", "p50", "p75", "p95", "max", "mean")
SPREADS = {
    "document_tokens": "tokens per document",
    "piece_tokens": "tokens per piece",
    "pieces_per_row": "pieces per row",
}
BAR_CHARACTERS = 40


def tables(figures: dict[str, Any]) -> Iterator[RenderableType]:
    """Everything that `measure_rows` found, as a person reads it."""
    from llmctl.cli.summary import byte_size

    yield f"{figures['ref']}  rows of {figures['seq_len']:,} tokens, {byte_size(figures['bytes'])} stored"
    yield ""
    yield _splits(figures["splits"])
    for split, found in figures["splits"].items():
        yield ""
        yield _spreads(split, found)
    train = figures["splits"]["train"]
    yield ""
    yield _bars("tokens per piece (train)", train["piece_tokens"]["histogram"])
    if figures["sources"]:
        yield ""
        yield _sources(figures["sources"])
    if figures["fim_documents"]:
        yield f"{figures['fim_documents']:,} documents are rearranged for fill-in-the-middle"


def _splits(splits: dict[str, Any]) -> Table:
    columns = ("rows", "full", "tokens", "padding", "documents", "cut", "mean context")
    table = _table("split", *columns)
    for name, found in splits.items():
        counts = (f"{found[key]:,}" for key in ("rows", "full_rows", "tokens"))
        documents = (f"{found[key]:,}" for key in ("documents", "documents_cut"))
        table.add_row(name, *counts, f"{found['padding']:.3%}", *documents, f"{found['context']:,.0f}")
    return table


def _spreads(split: str, found: dict[str, Any]) -> Table:
    from llmctl.cli.summary import figure

    table = _table(split, *SHOWN)
    for key, name in SPREADS.items():
        table.add_row(name, *(figure(found[key][share]) for share in SHOWN))
    return table


def _bars(heading: str, bins: list[dict[str, int]]) -> Table:
    """A histogram drawn in characters."""
    from rich.text import Text

    table = _table(heading, "pieces")
    table.add_column("", justify="left", no_wrap=True)
    most = max(one["count"] for one in bins)
    for one in bins:
        bar = "█" * round(BAR_CHARACTERS * one["count"] / most) or ("▏" if one["count"] else "")
        table.add_row(f"{one['from']:,} to {one['below'] - 1:,}", f"{one['count']:,}", Text(bar, overflow="crop"))
    return table


def _sources(sources: list[dict[str, Any]]) -> Table:
    spans = [stage["tokens"] for stage in sources[0]["stages"]]
    names = ["share" if len(spans) == 1 else "then" if span is None else f"first {span:,}" for span in spans]
    table = _table("source (train)", "rows", "tokens", *names, "passes in as many rows")
    for one in sources:
        shares = (f"{stage['share']:.2%}" for stage in one["stages"])
        table.add_row(one["source"], f"{one['rows']:,}", f"{one['tokens']:,}", *shares, f"{one['passes']:.2f}")
    return table


def _table(first: str, *others: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right")
    return table
