"""llmctl ls."""

from __future__ import annotations

from typing import Annotated

import typer

from llmctl.cli.command import DEFAULT_STORE, JsonOption, QuietOption, StoreOption
from llmctl.cli.failures import guarded
from llmctl.cli.output import Mode, Sink


def command(
    name: Annotated[str | None, typer.Argument(help="Only the versions of this name.", show_default=False)] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the artifacts of the store: the latest version of every name, or all versions of one.

    \b
    Examples:
      llmctl ls
      llmctl ls web.clean
    """
    sink = Sink("ls", as_json=as_json, quiet=quiet, human=True)
    guarded(sink, lambda: _run(name, store, sink))


def _run(name: str | None, location: str, sink: Sink) -> None:
    from rich.table import Table

    from llmctl.cli.summary import byte_size, figure
    from llmctl.config.errors import InputError
    from llmctl.store.store import Store

    store = Store.open(location)
    rows = {
        artifact.ref: artifact for _, artifact in store.artifacts() if name in (None, artifact.ref.partition("@")[0])
    }
    if name is not None and not rows:
        raise InputError(f"no artifact is called {name!r} in {store.root}", hint="see llmctl ls")
    if name is None:  # versions ascend, so the last one of a name wins
        rows = {artifact.ref: artifact for artifact in {a.ref.partition("@")[0]: a for a in rows.values()}.values()}
    table = Table(box=None, pad_edge=False)
    for column in ("ref", "kind", "size", "holds", "made", "digest"):
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    for ref, artifact in rows.items():
        manifest = artifact.manifest
        size = sum(entry.bytes for entry in manifest.files)
        if sink.mode is Mode.QUIET:
            sink.write(ref)
        elif sink.mode is Mode.RECEIPTS:
            sink.write_json(
                {
                    "ref": ref,
                    "kind": artifact.kind,
                    "bytes": size,
                    "digest": artifact.digest,
                    "made": manifest.run.finished,
                }
            )
        else:
            holds = ", ".join(
                f"{figure(v)} {k}" for k, v in list(manifest.totals.items())[:2] if not isinstance(v, str)
            )
            table.add_row(ref, artifact.kind, byte_size(size), holds, manifest.run.finished, artifact.digest[7:19])
    if sink.mode is Mode.HUMAN:
        sink.render(table)
