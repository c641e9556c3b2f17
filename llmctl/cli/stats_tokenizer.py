"""What `llmctl stats TOKENIZER --on REF` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmctl.cli.output import Mode, Sink

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from llmctl.store.artifact import Artifact, Input

HEADINGS = {"languages": "language", "sources": "source"}
COLUMNS = ("documents", "bytes per token", "tokens per word", "unknown")


def show(tokenizer: Artifact, documents: Input, top: int, sink: Sink) -> None:
    """Measure the tokenizer and print its figures: tables for people, else one JSON object."""
    from llmctl.tokens.measure import measure

    figures = measure(tokenizer, documents, top, sink)
    if sink.mode is Mode.RECEIPTS:
        sink.write_json(figures)
    else:
        sink.render(*_tables(figures))


def _tables(figures: dict[str, Any]) -> Iterator[RenderableType]:
    from llmctl.cli.summary import byte_size

    sizes = f"{figures['documents']:,} documents, {byte_size(figures['bytes'])}, {figures['tokens']:,} tokens"
    yield f"{figures['ref']}  {figures['vocab_size']:,} ids, on {figures['on']}: {sizes}"
    use = f"{figures['vocabulary_used']:,} ids used, {figures['vocabulary_use'] or 0:.1%} of those that stand for text"
    yield f"{use}; {figures['byte_rate'] or 0:.2%} of the tokens are bytes of characters not known whole"
    for change in figures["changes"]:
        yield f"not exact: {change}"
    for name, heading in HEADINGS.items():
        yield ""
        yield _listed(figures[name], heading, figures)


def _listed(listed: dict[str, Any], heading: str, whole: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column(heading, overflow="fold", max_width=60)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for one in listed["top"]:
        table.add_row(Text(one["value"] or "not stated"), *_cells(one))
    hidden = listed["different"] - len(listed["top"])
    if hidden:
        table.add_row(f"{hidden:,} more", "", "", "", "")
    table.add_row("all", *_cells(whole))
    return table


def _cells(counts: dict[str, Any]) -> tuple[str, ...]:
    ratios = (counts["bytes_per_token"], counts["tokens_per_word"])
    return (
        f"{counts['documents']:,}",
        *("" if value is None else f"{value:.3f}" for value in ratios),
        f"{counts['unknown_rate'] or 0:.3%}",
    )
