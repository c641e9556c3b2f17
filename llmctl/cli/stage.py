"""Every stage's command: receive → execute → print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from llmctl.cli.command import (
    DEFAULT_STORE,
    DryRunOption,
    ForceOption,
    Given,
    JsonOption,
    NameOption,
    PrintConfigOption,
    QuietOption,
    StoreOption,
    build_command,
    piped_stdin,
)
from llmctl.cli.failures import guarded
from llmctl.cli.output import Sink
from llmctl.config.errors import EXIT_OK
from llmctl.pipeline.stage import Stage, Verb

if TYPE_CHECKING:
    from llmctl.config.base import Config
    from llmctl.store.artifact import Artifact, Input

COMMON: dict[str, tuple[Any, Any]] = {
    "store": (StoreOption, DEFAULT_STORE),
    "name": (NameOption, None),
    "force": (ForceOption, False),
    "as_json": (JsonOption, False),
    "quiet": (QuietOption, False),
    "print_config": (PrintConfigOption, False),
    "dry_run": (DryRunOption, False),
}


def stage_command(stage: Stage) -> Callable[..., None]:
    """The Typer callback of one stage."""

    def body(given: Given) -> None:
        sink = Sink(stage.command, as_json=given.options["as_json"], quiet=given.options["quiet"])
        from llmctl.train.ranks import environment

        if environment().world_size == 1:
            guarded(sink, lambda: _run(stage, given, sink))
            return
        from llmctl.train.launch import leave

        try:
            guarded(sink, lambda: _run_as_rank(stage, given, sink))
        except typer.Exit as done:
            leave(done.exit_code)
        leave(EXIT_OK)

    return build_command(stage, COMMON, body)


def _run_as_rank(stage: Stage, given: Given, sink: Sink) -> None:
    """Under a launcher every rank gets here: rank 0 runs the command, the others do what it says."""
    from llmctl.train.launch import dismiss, follow
    from llmctl.train.ranks import environment

    if environment().rank > 0:
        follow()
        return
    _run(stage, given, sink)
    dismiss()  # after a failure the launcher ends the others


def _run(stage: Stage, given: Given, sink: Sink) -> None:
    from llmctl.pipeline import receipts
    from llmctl.pipeline.execute import Call, execute, plan, resolve_inputs
    from llmctl.store.store import Store

    options = given.options
    if options["print_config"]:
        config = given.config()
        sink.write(json.dumps({**config.model_dump(mode="json"), "derived": config.resolved()}, indent=2))
        return
    config, refs = given.resolve()
    store = Store.expected(options["store"]) if options["dry_run"] else Store.open(options["store"], create=True)
    call = Call(stage, config, {}, options["name"], options["force"], tuple(sys.argv[1:]))
    if not options["dry_run"]:
        sink.begin(receipts.begin(call.run_id, stage.command, stage.makes(config), store))
    refs, piped = take_pipe(stage, refs, config)
    call = call.with_inputs(resolve_inputs(stage, refs, store, piped, config=config))
    if options["dry_run"]:
        sink.write_json(plan(call, store))
        return
    outcome = execute(call, store, sink)
    sink.finish(outcome.artifact, receipts.end_ok(outcome.artifact, cached=outcome.cached), stage.then, outcome.seconds)


def open_inputs(verb: Verb, refs: Mapping[str, str], location: str) -> tuple[dict[str, Input], bool]:
    """What a verb that only reads is given, and whether its `input` came through the pipe.

    The pipe is read before the store is opened: the stage before it may still make the store.
    """
    from llmctl.pipeline.execute import resolve_inputs
    from llmctl.store.store import Store

    refs, piped = take_pipe(verb, refs)
    return resolve_inputs(verb, refs, Store.open(location), piped), bool(piped)


def take_pipe(
    verb: Verb, refs: Mapping[str, str], config: Config | None = None
) -> tuple[dict[str, str], dict[str, Artifact]]:
    """Fill the role `input` from the pipe where the reference is `-`, or left out and something is piped in."""
    from llmctl.pipeline.receipts import receive

    rest = {role: ref for role, ref in refs.items() if not (role == "input" and ref == "-")}
    if "input" not in verb.inputs or not verb.lacks("input", rest, config):
        return rest, {}
    stdin = piped_stdin()
    if stdin is None and "input" not in refs:
        return rest, {}
    return rest, {"input": receive(stdin or ())}
