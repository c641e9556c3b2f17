"""llmctl run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.cli.command import DEFAULT_STORE, DryRunOption, ForceOption, JsonOption, QuietOption, StoreOption
from llmctl.cli.failures import guarded
from llmctl.cli.output import Mode, Sink

if TYPE_CHECKING:
    from llmctl.pipeline.recipe import Finished, Recipe, Step


def command(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STEP.KEY=VALUE]...", help="Settings of single steps.", show_default=False),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a recipe's steps in order; what is in the cache is not run again.

    \b
    Examples:
      llmctl run recipes/demo.yaml
      llmctl run recipes/demo.yaml pretrain.steps=100
      llmctl run recipes/demo.yaml --dry-run
    """
    sink = Sink("run", as_json=as_json, quiet=quiet, human=True)
    guarded(sink, lambda: _run(recipe, tuple(overrides or ()), store, force, dry_run, sink))


def _run(path: Path, overrides: tuple[str, ...], location: str, force: bool, dry_run: bool, sink: Sink) -> None:
    from llmctl.pipeline.recipe import outside_inputs, read_recipe, run_recipe
    from llmctl.store.store import Store

    recipe = read_recipe(path, overrides)
    if dry_run:
        outside_inputs(recipe, Store.expected(location))
        _show_plan(recipe, sink)
        return
    opened = Store.open(location, create=True)
    argv = tuple(sys.argv[1:])

    def on_start(step: Step) -> None:
        sink.start(f"run {step.id}")

    run_recipe(
        recipe, opened, sink, force=force, argv=argv, on_start=on_start, on_finish=lambda done: _show(done, sink)
    )


def _show(done: Finished, sink: Sink) -> None:
    """One step's result: its headline, and the totals that it has beyond."""
    from llmctl.cli.summary import headline, totals_table
    from llmctl.pipeline.receipts import end_ok

    artifact = done.outcome.artifact
    if sink.mode is Mode.QUIET:
        sink.write(artifact.ref)
    elif sink.mode is Mode.RECEIPTS:
        sink.write_json(
            {
                "step": done.step.id,
                "seconds": round(done.outcome.seconds, 3),
                **end_ok(artifact, cached=done.outcome.cached),
            }
        )
    else:
        sink.write(headline(artifact, cached=done.outcome.cached, seconds=done.outcome.seconds))
        sink.render(totals_table(artifact), "")


def _show_plan(recipe: Recipe, sink: Sink) -> None:
    """Every step as it would run, with all defaults filled in; the cache is not asked."""
    for step in recipe.steps:
        config, derived = step.config.model_dump(mode="json"), step.config.resolved()
        row = {"step": step.id, "uses": step.stage.command, "in": dict(step.refs), "with": config, "derived": derived}
        sink.write_json(row)
