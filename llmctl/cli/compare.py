"""llmctl compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.cli.command import DEFAULT_STORE, JsonOption, StoreOption
from llmctl.cli.failures import guarded
from llmctl.cli.output import Mode, Sink

if TYPE_CHECKING:
    from rich.table import Table

    from llmctl.evals.compare import Difference


def command(
    first: Annotated[str, typer.Argument(help="An eval artifact.", show_default=False)],
    second: Annotated[str, typer.Argument(help="Another one, on the same data.", show_default=False)],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Compare two evaluations item by item, with paired significance.

    \b
    Examples:
      llmctl compare web.sft.eval web.dpo.eval
      llmctl compare web.eval@v1 web.eval@v2 --json
    """
    sink = Sink("compare", as_json=as_json, human=True)
    guarded(sink, lambda: _run(first, second, store, sink))


def _run(first: str, second: str, location: str, sink: Sink) -> None:
    from llmctl.config.errors import InputError
    from llmctl.evals.compare import compared
    from llmctl.store.store import Store

    store = Store.open(location)
    artifacts = [store.resolve(ref) for ref in (first, second)]
    for artifact in artifacts:
        if artifact.kind != "eval":
            raise InputError(f"{artifact.ref} is a {artifact.kind} artifact, not an eval", hint="see llmctl ls")
    differences = compared(*artifacts)
    if sink.mode is Mode.RECEIPTS:
        sink.write_json(
            {"first": artifacts[0].ref, "second": artifacts[1].ref, "figures": [d.as_json() for d in differences]}
        )
        return
    sink.render(_table(artifacts[0].ref, artifacts[1].ref, differences))
    if changed := sum(one.other_prompts for one in differences):
        sink.note(f"{changed} prompts differ between the two: shots, templates or chat are not the same")
    if left_out := max(one.left_out for one in differences):
        sink.note(f"up to {left_out} items of a task are in one of the two alone, and take no part")


def _table(first: str, second: str, differences: list[Difference]) -> Table:
    from rich.table import Table

    table = Table(pad_edge=False)
    for column in ("figure", first, second, "difference", "± stderr", "p", "better", "worse", "items"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for one in differences:
        error, p = ("" if value is None else f"{value:.4f}" for value in (one.stderr, one.p))
        table.add_row(
            one.figure, f"{one.first:.4f}", f"{one.second:.4f}", f"{one.difference:+.4f}", error, p,
            str(one.gained), str(one.lost), str(one.n),
        )  # fmt: skip
    return table
