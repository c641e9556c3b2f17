"""llmctl to-megatron."""

from __future__ import annotations

from typing import Annotated

import typer

from llmctl.cli.command import DEFAULT_STORE, JsonOption, StoreOption
from llmctl.cli.failures import guarded
from llmctl.cli.output import Mode, Sink


def command(
    ref: Annotated[str, typer.Argument(help="Token shards: name, name@v3, name@sha256:… or a path.")],
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="Where PREFIX.bin and PREFIX.idx are written.")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Write token shards as a dataset that Megatron and its relatives map: PREFIX.bin and PREFIX.idx, version 1.

    \b
    Examples:
      llmctl to-megatron web.tokenize corpus/web
      llmctl to-megatron web.tokenize@v2 corpus/web --json

    Every document is one sequence, with its <s> and </s>; held-out documents are among them. The way back is
    llmctl from-megatron.
    """
    sink = Sink("to-megatron", as_json=as_json, human=True)
    guarded(sink, lambda: _run(ref, prefix, store, sink))


def _run(ref: str, prefix: str, location: str, sink: Sink) -> None:
    from llmctl.store.store import Store
    from llmctl.tokens.megatron import write_indexed

    written = write_indexed(Store.open(location).resolve(ref), prefix)
    if sink.mode is Mode.RECEIPTS:
        sink.write_json(written)
    else:
        counts = f"{written['documents']:,} documents, {written['tokens']:,} tokens as {written['dtype']}"
        sink.write(f"{' '.join(written['files'])}: {counts}")
