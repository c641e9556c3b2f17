"""llmctl verify."""

from __future__ import annotations

from typing import Annotated

import typer

from llmctl.cli.command import DEFAULT_STORE, JsonOption, StoreOption
from llmctl.cli.failures import guarded
from llmctl.cli.output import Mode, Sink


def command(
    ref: Annotated[str | None, typer.Argument(help="What to check.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Check every version of every name.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Sizes and manifests only, not every byte.")] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Check stored bytes against their manifests; exit 5 names every file that differs.

    \b
    Examples:
      llmctl verify --all
      llmctl verify web.pack --quick
    """
    sink = Sink("verify", as_json=as_json, human=True)
    guarded(sink, lambda: _run(ref, everything, quick, store, sink))


def _run(ref: str | None, everything: bool, quick: bool, location: str, sink: Sink) -> None:
    from llmctl.config.errors import IntegrityError, UsageError
    from llmctl.store.store import Store
    from llmctl.store.verify import verify_artifact, verify_store

    if everything == (ref is not None):
        raise UsageError("say what to check", hint="give one reference, or --all")
    opened = Store.open(location)
    if ref is None:
        checked, faults = verify_store(opened, full=not quick)
    else:
        checked, faults = 1, verify_artifact(opened.resolve(ref), full=not quick)
    if sink.mode is Mode.RECEIPTS:
        sink.write_json({"checked": checked, "faults": [{"ref": f.ref, "what": f.what} for f in faults]})
    else:
        for fault in faults:
            sink.write(f"{fault.ref}: {fault.what}")
        sink.write(f"{checked} checked, {len(faults)} faults")
    if faults:
        raise IntegrityError(
            f"{len(faults)} of the store's promises do not hold", hint="make these artifacts again with --force"
        )
