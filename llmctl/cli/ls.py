"""llmctl ls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.cli.command import DEFAULT_STORE, JsonOption, QuietOption, StoreOption
from llmctl.cli.failures import guarded
from llmctl.cli.output import Mode, Sink

if TYPE_CHECKING:
    from rich.table import Table

    from llmctl.store.artifact import Artifact


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
    from llmctl.config.errors import InputError
    from llmctl.store.store import Store

    store = Store.open(location)
    if name is not None and name not in store.names():
        raise InputError(f"no artifact is called {name!r} in {store.root}", hint="see llmctl ls")
    refs = store.names() if name is None else store.versions(name)
    artifacts = [store.resolve(ref) for ref in refs]
    if sink.mode is Mode.HUMAN:
        sink.render(_table(artifacts))
    for artifact in artifacts:
        if sink.mode is Mode.QUIET:
            sink.write(artifact.ref)
        elif sink.mode is Mode.RECEIPTS:
            manifest = artifact.manifest
            row = {"ref": artifact.ref, "kind": artifact.kind, "bytes": artifact.bytes, "digest": artifact.digest}
            sink.write_json({**row, "made": manifest.run.finished})


def _table(artifacts: list[Artifact]) -> Table:
    from rich.table import Table

    from llmctl.cli.summary import byte_size, figure, leading

    table = Table(box=None, pad_edge=False)
    for column in ("ref", "kind", "size", "holds", "made", "digest"):
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    for artifact in artifacts:
        holds = ", ".join(f"{figure(value)} {key}" for key, value in leading(artifact, most=2))
        made, digest = artifact.manifest.run.finished, artifact.digest[7:19]
        table.add_row(artifact.ref, artifact.kind, byte_size(artifact.bytes), holds, made, digest)
    return table
