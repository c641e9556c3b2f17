"""llmctl show."""

from __future__ import annotations

from typing import Annotated

import typer

from llmctl.cli.command import DEFAULT_STORE, JsonOption, StoreOption
from llmctl.cli.failures import guarded
from llmctl.cli.output import Mode, Sink


def command(
    ref: Annotated[str, typer.Argument(help="name, name@v3, name@sha256:… or a path.", show_default=False)],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show what an artifact holds: its totals, files and facts, and the results of an evaluation.

    \b
    Examples:
      llmctl show web.clean
      llmctl show web.eval@v2
      llmctl show web.pack --json        the manifest
    """
    sink = Sink("show", as_json=as_json, human=True)
    guarded(sink, lambda: _run(ref, store, sink))


def _run(ref: str, location: str, sink: Sink) -> None:
    from rich.table import Table

    from llmctl.cli.summary import byte_size, figure, results_tables, totals_table
    from llmctl.store.store import Store

    artifact = Store.open(location).resolve(ref)
    manifest = artifact.manifest
    if sink.mode is Mode.RECEIPTS:
        sink.write(manifest.to_bytes().decode().rstrip())
        return
    if artifact.kind == "eval":
        sink.render(f"{artifact.ref}  {artifact.kind}", *results_tables(artifact))
        return
    files = Table(box=None, pad_edge=False)
    for column in ("file", "size", "rows", "tokens", "split"):
        files.add_column(column, justify="left" if column in ("file", "split") else "right", overflow="fold")
    for entry in manifest.files:
        counts = [None if n is None else figure(n) for n in (entry.rows, entry.tokens)]
        files.add_row(entry.path, byte_size(entry.bytes), *counts, entry.split)
    licence = ", ".join(manifest.license) or "unknown"
    made = f"{manifest.run.finished} by llmctl {manifest.producer.command}, licence {licence}"
    sink.render(
        f"{artifact.ref}  {artifact.kind}", artifact.digest, f"made {made}", "", totals_table(artifact), "", files
    )
    for role, source in manifest.inputs.items():
        sink.write(f"{role}: {source.ref} ({source.kind}, {source.digest[:19]})")
