"""llmctl lineage."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.cli.command import DEFAULT_STORE, JsonOption, StoreOption
from llmctl.cli.failures import guarded
from llmctl.cli.output import Mode, Sink

if TYPE_CHECKING:
    from rich.tree import Tree

    from llmctl.store.lineage import Node


def command(
    ref: Annotated[str, typer.Argument(help="name, name@v3, name@sha256:… or a path.", show_default=False)],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show what an artifact was made from, back to the sources.

    \b
    Examples:
      llmctl lineage web.sft
    """
    sink = Sink("lineage", as_json=as_json, human=True)
    guarded(sink, lambda: _run(ref, store, sink))


def _run(ref: str, location: str, sink: Sink) -> None:
    from llmctl.store.lineage import trace
    from llmctl.store.store import Store

    store = Store.open(location)
    node = trace(store, store.resolve(ref))
    if sink.mode is Mode.RECEIPTS:
        sink.write_json(asdict(node))
    else:
        sink.render(_tree(node))


def _tree(node: Node, tree: Tree | None = None) -> Tree:
    from rich.tree import Tree

    role = "" if node.role in ("", "input") else f"{node.role}: "
    made = f"  made by {node.command}" if node.command else ""
    text = f"{role}{node.ref}  {node.kind}  {node.digest[7:19]}{made}"
    branch = Tree(text) if tree is None else tree.add(text)
    for parent in node.parents:
        _tree(parent, branch)
    return branch
