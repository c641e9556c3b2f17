"""llmctl stats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.cli.command import (
    DEFAULT_STORE,
    Given,
    JsonOption,
    PrintConfigOption,
    StoreOption,
    build_command,
)
from llmctl.cli.failures import guarded
from llmctl.cli.output import Mode, Sink
from llmctl.cli.stage import open_inputs
from llmctl.config.errors import UsageError
from llmctl.pipeline.stage import Role, Verb

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from llmctl.store.artifact import Artifact

STATS = Verb(
    command="stats",
    summary="Measure documents, rows, or a tokenizer on documents.",
    config="llmctl.config.stats:StatsConfig",
    inputs={
        "input": Role(("documents", "rows", "tokenizer"), "documents, packed rows or tokenizer to measure"),
        "on": Role(("documents",), "documents to measure a tokenizer on", required=False, files=True),
    },
    flags={"--top": "top"},
    examples=(
        "llmctl stats web.clean",
        "llmctl stats web.tokenizer --on web.dedup",
        "llmctl stats corpus --png corpus.png --top 20",
        "llmctl stats web.dedup --json ngram_words=[2,5]",
        "llmctl stats web.pack --png rows.png",
    ),
)
PngOption = Annotated[
    Path | None, typer.Option("--png", metavar="FILE", help="Draw a picture too.", show_default=False)
]
COMMON: dict[str, tuple[Any, Any]] = {
    "png": (PngOption, None),
    "store": (StoreOption, DEFAULT_STORE),
    "as_json": (JsonOption, False),
    "print_config": (PrintConfigOption, False),
}
HEADINGS = {"languages": "language", "licenses": "licence", "sources": "source", "domains": "domain", "splits": "split"}
SHOWN_LENGTHS = ("min", "p5", "p25", "p50", "p75", "p95", "max", "mean")


def _body(given: Given) -> None:
    sink = Sink("stats", as_json=given.options["as_json"], human=True)
    guarded(sink, lambda: _run(given, sink))


def _run(given: Given, sink: Sink) -> None:
    from llmctl.config.stats import StatsConfig
    from llmctl.store.artifact import Artifact

    config, refs = given.resolve()
    if given.options["print_config"]:
        sink.write(config.model_dump_json(indent=2))
        return
    inputs, _ = open_inputs(STATS, refs, given.options["store"])
    artifact = inputs["input"]
    assert isinstance(artifact, Artifact)
    assert isinstance(config, StatsConfig)
    if (artifact.kind == "tokenizer") != ("on" in inputs):
        raise UsageError(
            f"{artifact.ref} is of kind {artifact.kind}: --on goes with a tokenizer, and a tokenizer with --on",
            hint="llmctl stats TOKENIZER --on DOCUMENTS, or llmctl stats DOCUMENTS",
        )
    if artifact.kind == "rows":
        _run_rows(artifact, given.options["png"], sink)
        return
    if "on" in inputs:
        from llmctl.cli.stats_tokenizer import show

        show(artifact, inputs["on"], config.top, sink)
        return

    from llmctl.data.stats import measure, report

    figures = report(artifact, measure(artifact, config, sink), config)
    if given.options["png"] is not None:
        from llmctl.data.stats.picture import draw

        draw(figures, given.options["png"])
        sink.note(f"drew {given.options['png']}")
    if sink.mode is Mode.RECEIPTS:
        sink.write_json(figures)
    else:
        sink.render(*_tables(figures))


def _run_rows(artifact: Artifact, png: Path | None, sink: Sink) -> None:
    from llmctl.cli.stats_rows import tables
    from llmctl.tokens.row_stats import measure_rows

    figures = measure_rows(artifact)
    if png is not None:
        from llmctl.tokens.row_picture import draw_rows

        draw_rows(figures, png)
        sink.note(f"drew {png}")
    if sink.mode is Mode.RECEIPTS:
        sink.write_json({key: value for key, value in figures.items() if key != "first_rows"})
    else:
        sink.render(*tables(figures))


def _tables(figures: dict[str, Any]) -> Iterator[RenderableType]:
    """Everything, as a person reads it."""
    from llmctl.cli.summary import byte_size

    sizes = f"{byte_size(figures['bytes'])} of text, {byte_size(figures['stored_bytes'])} stored"
    yield f"{figures['ref']}  {figures['documents']:,} documents, {figures['words']:,} words, {sizes}"
    yield ""
    yield _lengths(figures["lengths"])
    for name, heading in HEADINGS.items():
        yield ""
        yield _listed(figures[name], heading, figures["documents"])
    for ngrams in figures["ngrams"]:
        if ngrams["top"]:
            yield ""
            yield _ngrams(ngrams)


def _lengths(lengths: dict[str, Any]) -> Table:
    from llmctl.cli.summary import figure

    table = _table("length in", *SHOWN_LENGTHS)
    for unit, values in lengths.items():
        table.add_row(unit, *(figure(values[name]) for name in SHOWN_LENGTHS))
    return table


def _listed(listed: dict[str, Any], heading: str, documents: int) -> Table:
    from rich.text import Text

    from llmctl.cli.summary import byte_size

    table = _table(heading, "documents", "share", "bytes")
    for one in listed["top"]:
        count, share = one["documents"], one["documents"] / documents
        table.add_row(Text(one["value"] or "not stated"), f"{count:,}", f"{share:.1%}", byte_size(one["bytes"]))
    hidden = listed["different"] - len(listed["top"])
    if hidden:
        rest = documents - sum(one["documents"] for one in listed["top"])
        table.add_row(f"{hidden:,} more", f"{rest:,}", f"{rest / documents:.1%}", "")
    return table


def _ngrams(ngrams: dict[str, Any]) -> Table:
    from rich.text import Text

    error = f", at most {ngrams['error']:,} too low" if ngrams["error"] else ""
    name = "word" if ngrams["words"] == 1 else f"{ngrams['words']} words"
    table = _table(name, f"count{error}")
    for one in ngrams["top"]:
        table.add_row(Text(one["text"]), f"{one['count']:,}")
    return table


def _table(first: str, *others: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column(first, overflow="fold", max_width=60)
    for name in others:
        table.add_column(name, justify="right")
    return table


command = build_command(STATS, COMMON, _body)
