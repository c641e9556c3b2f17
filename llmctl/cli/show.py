"""llmctl show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.cli.command import DEFAULT_STORE, JsonOption, StoreOption
from llmctl.cli.failures import guarded
from llmctl.cli.output import Mode, Sink

if TYPE_CHECKING:
    from llmctl.store.artifact import Artifact

EXCERPT = 1000  # characters of a dropped document


def command(
    ref: Annotated[str, typer.Argument(help="name, name@v3, name@sha256:… or a path.", show_default=False)],
    step: Annotated[int | None, typer.Option(help="Print the text that this training step saw, from 1.", min=1)] = None,
    seed: Annotated[
        int | None, typer.Option(help="With --step on packed rows: the run's seed; pretrain's default.", min=0)
    ] = None,
    batch_rows: Annotated[
        int | None, typer.Option(help="With --step on packed rows: rows of a step; pretrain's default.", min=1)
    ] = None,
    rank: Annotated[int | None, typer.Option(help="With --step: only what this rank saw, from 0.", min=0)] = None,
    world_size: Annotated[
        int | None, typer.Option(help="With --step: ranks of the run; by default as many as --nproc was.", min=1)
    ] = None,
    rejected: Annotated[
        str | None, typer.Option(metavar="RULE", help="Show documents that this rule of clean dropped.")
    ] = None,
    limit: Annotated[int, typer.Option(help="With --rejected: most documents to show.", min=1)] = 5,
    incidents: Annotated[
        bool, typer.Option("--incidents", help="Show the steps of a run that its guards left out, and what they saw.")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show what an artifact holds: its totals, files and facts, and the results of an evaluation.

    \b
    Examples:
      llmctl show web.clean
      llmctl show web.eval@v2
      llmctl show web.clean --rejected too_few_words
      llmctl show web.pack --json            the manifest
      llmctl show web.pretrain --step 120    what that step of the run saw
      llmctl show web.pretrain --step 120 --rank 3
      llmctl show web.grpo --step 12         answers and rewards that step 12 learned from
      llmctl show web.pack --step 120 --seed 1 --batch-rows 8 --rank 1 --world-size 4
      llmctl show web.pretrain --incidents   steps with a spike or NaN, and their rows
    """
    sink = Sink("show", as_json=as_json, human=True)
    if incidents:
        guarded(sink, lambda: _show_incidents(ref, store, sink))
    elif rejected is not None:
        guarded(sink, lambda: _show_rejected(ref, rejected, limit, store, sink))
    elif step is None:
        guarded(sink, lambda: _run(ref, store, sink))
    else:
        guarded(sink, lambda: _show_step(ref, step, seed, batch_rows, store, sink, rank, world_size))


def _show_rejected(ref: str, rule: str, limit: int, location: str, sink: Sink) -> None:
    from llmctl.data.funnel import excerpt, rejected_examples
    from llmctl.store.store import Store

    for row in rejected_examples(Store.open(location).resolve(ref), rule, limit):
        if sink.mode is Mode.RECEIPTS:
            sink.write_json(row)
        else:
            where = row["url"] or row["source"]
            sink.write(f"== {row['id']} ({where}), {rule} {row['value']:.4g}\n{excerpt(row['text'], EXCERPT)}\n")


def _show_incidents(ref: str, location: str, sink: Sink) -> None:
    from llmctl.store.metrics import incidents_of
    from llmctl.store.store import Store

    artifact = Store.open(location).resolve(ref)
    found = incidents_of(artifact)
    readable = artifact.manifest.producer.command == "pretrain"
    for row in found:
        if sink.mode is Mode.RECEIPTS:
            sink.write_json(row)
        else:
            sink.write(f"step {row['step']}: {row['incident']}: {row['action']}; rows {row['rows']}\n")
        if readable:
            _show_step(ref, row["step"], None, None, location, sink)
    if not found:
        sink.note(f"{artifact.ref}: no step was left out")


def _show_step(
    ref: str,
    step: int,
    seed: int | None,
    batch_rows: int | None,
    location: str,
    sink: Sink,
    rank: int | None = None,
    world_size: int | None = None,
) -> None:
    from dataclasses import asdict

    from llmctl.data.rollouts import has_rollouts
    from llmctl.store.store import Store
    from llmctl.tokens.reading import Reading, pieces_of_step

    store = Store.open(location)
    artifact = store.resolve(ref)
    if has_rollouts(artifact):
        _show_answers(artifact, step, sink)
        return
    reading = Reading.of(artifact, store, seed, batch_rows, world_size)
    for piece in pieces_of_step(reading, step - 1, rank):
        if sink.mode is Mode.RECEIPTS:
            sink.write_json(asdict(piece))
        else:
            where = f"rank {piece.rank}, micro-batch {piece.micro_batch}, row {piece.row}"
            sink.write(f"== {where}, {piece.document}, {piece.tokens} tokens from {piece.start}\n{piece.text}\n")


def _show_answers(artifact: Artifact, step: int, sink: Sink) -> None:
    """What a policy said, of which the step learned."""
    from llmctl.data.rollouts import SHOWN, answers_of_step, spoken

    for row in answers_of_step(artifact, step):
        if sink.mode is Mode.RECEIPTS:
            sink.write_json(row)
            continue
        told = {name: row[name] for name in SHOWN}
        worth = told["missing"] or f"reward {told['reward']:.4g}, advantage {told['advantage']:.4g}"
        cut = ", cut" if told["truncated"] else ""
        sink.write(f"== {told['prompt_id']}, sample {told['sample']}, {worth}{cut}; wanted {told['answer']!r}")
        sink.write("\n".join((told["prompt"], *spoken(row), "")))


def _run(ref: str, location: str, sink: Sink) -> None:
    from rich.table import Table

    from llmctl.cli.summary import byte_size, figure, funnel_table, results_tables, totals_table
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
        f"{artifact.ref}  {artifact.kind}",
        artifact.digest,
        f"made {made}",
        "",
        totals_table(artifact),
        *funnel_table(artifact),
        "",
        files,
    )
    for role, source in manifest.inputs.items():
        sink.write(f"{role}: {source.ref} ({source.kind}, {source.digest[:19]})")
