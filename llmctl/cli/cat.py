"""llmctl cat."""

from __future__ import annotations

from typing import Annotated

import typer

from llmctl.cli.command import DEFAULT_STORE, JsonOption, QuietOption, StoreOption
from llmctl.cli.failures import guarded
from llmctl.cli.output import Sink


def command(
    ref: Annotated[str, typer.Argument(help="name, name@v3, name@sha256:… or a path.", show_default=False)],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Send an artifact into a pipe, as the receipt of a finished stage.

    \b
    Examples:
      llmctl cat web.clean | llmctl dedup
    """
    sink = Sink("cat", as_json=as_json, quiet=quiet)
    guarded(sink, lambda: _run(ref, store, sink))


def _run(ref: str, location: str, sink: Sink) -> None:
    from llmctl.pipeline import receipts
    from llmctl.store.store import Store

    store = Store.open(location)
    artifact = store.resolve(ref)
    sink.begin(receipts.begin(artifact.manifest.run.id, "cat", artifact.kind, store))
    sink.finish(artifact, receipts.end_ok(artifact, cached=True), "")
