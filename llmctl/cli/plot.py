"""llmctl plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmctl.cli.command import DEFAULT_STORE, JsonOption, StoreOption
from llmctl.cli.failures import guarded
from llmctl.cli.output import Mode, Sink

DEFAULT_FIGURES = "loss,heldout_loss"
LINES = 18  # of a chart in the terminal


def command(
    refs: Annotated[list[str], typer.Argument(help="what was trained: name, name@v3, …", show_default=False)],
    figures: Annotated[
        str | None, typer.Option("--figures", metavar="NAMES", help=f"Which ones, by comma; {DEFAULT_FIGURES}.")
    ] = None,
    axis: Annotated[str, typer.Option("--x", metavar="NAME", help="step, tokens or elapsed_s.")] = "step",
    smooth: Annotated[
        float, typer.Option(help="Weight of the past in an exponential average.", min=0.0, max=0.9999)
    ] = 0.0,
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Draw a picture too.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Draw the curves of runs in the terminal, and to a PNG.

    \b
    Examples:
      llmctl plot web.pretrain
      llmctl plot web.pretrain@v1 web.pretrain@v2 --x tokens --png curves.png
      llmctl plot web.pretrain --figures loss,grad_norm,lr,mfu --smooth 0.9
      llmctl plot web.pretrain --json        the points
    """
    sink = Sink("plot", as_json=as_json, human=True)
    guarded(sink, lambda: _run(refs, figures, axis, smooth, png, store, sink))


def _run(
    refs: list[str], figures: str | None, axis: str, smooth: float, png: Path | None, location: str, sink: Sink
) -> None:
    import shutil
    from dataclasses import asdict

    from llmctl.config.errors import UsageError
    from llmctl.store.metrics import rows_of
    from llmctl.store.store import Store
    from llmctl.train import curves

    if axis not in curves.AXES:
        raise UsageError(f"--x {axis} is no axis", hint=f"known: {', '.join(curves.AXES)}")
    store = Store.open(location)
    artifacts = [store.resolve(ref) for ref in refs]
    runs = {artifact.ref: rows_of(artifact) for artifact in artifacts}
    wanted = _wanted(figures, {name for rows in runs.values() for row in rows for name in row})
    drawn = curves.curves_of(runs, wanted, axis, smooth)
    if png is not None:
        curves.draw(drawn, axis, png)
        sink.note(f"drew {png}")
    if sink.mode is Mode.RECEIPTS:
        for name, lines in drawn.items():
            for line in lines:
                sink.write_json({"figure": name, "axis": axis, **asdict(line)})
    else:
        sink.write(curves.text(drawn, axis, min(100, shutil.get_terminal_size().columns), LINES))


def _wanted(figures: str | None, known: set[str]) -> list[str]:
    """The figures that were asked for; else the usual ones, as far as the runs have them."""
    if figures is not None:
        return [name.strip() for name in figures.split(",") if name.strip()]
    return [name for name in DEFAULT_FIGURES.split(",") if name in known]
