"""Figures and samples of an evaluation, and the files that hold them (schema llmctl.eval/3)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from llmctl.config.evals import RESULTS_FILE
from llmctl.data.table_writer import TableWriter
from llmctl.evals.measure import Figures, Measured, Sample
from llmctl.evals.requests import Generation, Likelihood, Likely, Prompt, Request, Skipped, Written
from llmctl.evals.scoring import Estimate
from llmctl.pipeline.job import FileFacts
from llmctl.store.files import explained, publish_bytes
from llmctl.train.heldout import HeldOut

SCHEMA = "llmctl.eval/3"
CHECKPOINT, UNTRAINED, UNROUNDED = "checkpoint", "untrained", "unrounded"
BITS = "heldout.bits_per_byte"

Spelled = Callable[[Prompt], str]
"""The text of a prompt as the model got it, special tokens spelled out."""


def _list_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))


# prompt: what stood before the first choice or text. choices: the continuations that were scored, with their
# log_likelihoods in nats. texts: what was generated; answers: what each filter took from it, as JSON; draws: of several
# texts or budgets, what each was and was worth, as JSON; verdicts: what the sandbox says of each program.
# scores: the item's share in each figure, as JSON; empty where it was left out, for the reason in `skipped`.
SAMPLES = pa.schema(
    [
        pa.field(name, kind, nullable=name in ("prediction", "prediction_norm", "answer"))
        for name, kind in (
            ("model", pa.string()),
            ("task", pa.string()),
            ("part", pa.string()),
            ("number", pa.int32()),
            ("id", pa.string()),
            ("prompt", pa.string()),
            ("choices", _list_of(pa.string())),
            ("log_likelihoods", _list_of(pa.float64())),
            ("greedy", _list_of(pa.bool_())),
            ("texts", _list_of(pa.string())),
            ("tokens", pa.int64()),
            ("answers", pa.string()),
            ("draws", pa.string()),
            ("verdicts", _list_of(pa.string())),
            ("prediction", pa.int32()),
            ("prediction_norm", pa.int32()),
            ("answer", pa.int32()),
            ("targets", _list_of(pa.string())),
            ("scores", pa.string()),
            ("skipped", pa.string()),
        )
    ]
)


def sample_row(model: str, task: str, sample: Sample, spelled: Spelled) -> dict[str, Any]:
    """The row of the samples table; `prompt` and `choices` are the texts that were really scored."""
    item, outcome = sample.item, sample.outcome
    likely = [answer for answer in sample.answers if isinstance(answer, Likely)]
    written = [answer for answer in sample.answers if isinstance(answer, Written)]
    scores = {",".join(filter(None, named)): value for named, value in outcome.values.items()} if outcome else {}
    chosen = outcome.prediction if outcome else None
    draws = [one.as_json(budget) for budget, some in (outcome.draws if outcome else {}).items() for one in some]
    return {
        "model": model,
        "task": task,
        "part": item.part,
        "number": item.number,
        "id": item.id,
        "prompt": _prompt_of(item.requests[0], spelled),
        "choices": [one.continuation for one in item.requests if isinstance(one, Likelihood)],
        "log_likelihoods": [one.logprob for one in likely],
        "greedy": [one.is_greedy for one in likely],
        "texts": [one.text for one in written],
        "tokens": sum(len(one.tokens) for one in likely) + sum(one.tokens for one in written),
        "answers": json.dumps(outcome.answers or {} if outcome else {}, ensure_ascii=False),
        "draws": json.dumps(draws, ensure_ascii=False),
        "verdicts": [verdict.told for verdict in sample.verdicts],
        "prediction": chosen,
        "prediction_norm": outcome.prediction_norm if outcome else None,
        "answer": item.right[0] if item.right else None,
        "targets": list(item.targets),
        "scores": json.dumps(scores),
        "skipped": next((f"{one.reason}: {one.detail}" for one in sample.answers if isinstance(one, Skipped)), "")
        or sample.skipped,
    }


def _prompt_of(request: Request, spelled: Spelled) -> str:
    return spelled(request.prompt) if isinstance(request, Likelihood | Generation) else ""


def heldout_figures(heldout: HeldOut) -> Figures:
    """Loss in nats per token, its perplexity, and bits per byte of text; none has a standard error.

    The first two are over `n` tokens, the last over `n` bytes.
    """
    return {
        "heldout.loss": Estimate(heldout.loss, heldout.targets),
        "heldout.perplexity": Estimate(heldout.perplexity, heldout.targets),
        "heldout.bits_per_byte": Estimate(heldout.bits_per_byte, heldout.bytes),
    }


def flat(figures: Mapping[str, Figures]) -> dict[str, int | float | str]:
    """Headline figures for the manifest (`choices.acc`, `choices.acc.stderr`, `untrained.choices.acc`).

    What does not depend on the model (chance) is listed once. Where weights were rounded,
    `heldout.bits_per_byte.lost` is what that added, `int8.heldout.bits_per_byte.lost` of a variant.
    """
    totals: dict[str, int | float | str] = {}
    for model, named in figures.items():
        for name, estimate in named.items():
            if model != CHECKPOINT and name.endswith(".chance"):
                continue
            key = name if model == CHECKPOINT else f"{model}.{name}"
            totals[key] = estimate.value
            if estimate.stderr is not None:
                totals[f"{key}.stderr"] = estimate.stderr
        if (more := lost(figures, model)) is not None:
            totals[f"{BITS}.lost" if model == CHECKPOINT else f"{model}.{BITS}.lost"] = more
    return totals


def lost(figures: Mapping[str, Figures], model: str) -> float | None:
    """Bits per byte that a model's rounded weights add; None of one that was not rounded, or not measured beside it."""
    exact = UNROUNDED if UNROUNDED in figures else CHECKPOINT
    if model in (exact, UNTRAINED) or BITS not in figures[model] or BITS not in figures.get(exact, {}):
        return None
    return figures[model][BITS].value - figures[exact][BITS].value


def counts(measured: Iterable[Measured], given: Mapping[str, int]) -> dict[str, int]:
    """By task: items that count, those left out by each reason, and those beyond the limit."""
    totals: dict[str, int] = {}
    for one in measured:
        asked = len(one.samples)
        totals[f"{one.task}.scored"] = asked - sum(one.skipped.values())
        totals |= {f"{one.task}.skipped.{reason}": count for reason, count in sorted(one.skipped.items())}
        totals[f"{one.task}.skipped.limit"] = given[one.task] - asked
    return totals


def write(
    directory: Path,
    figures: Mapping[str, Figures],
    measured: Mapping[str, Iterable[Measured]],
    settings: Mapping[str, Any],
    spelled: Spelled,
) -> dict[str, FileFacts]:
    """Write `results.json`, and `samples-00000.parquet` where anything was asked.

    Args:
        directory: `job.out`.
        figures: by model, `checkpoint` first.
        measured: the tasks, by model.
        settings: what decided the figures, to be read beside them.
        spelled: writes prompts out.

    Returns:
        Facts by file name.
    """
    curves = {one.task: one.curves for one in measured.get(CHECKPOINT, ()) if one.curves}
    content = {"schema": SCHEMA, "settings": dict(settings), "tasks": by_task(figures), "curves": curves}
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    with explained(str(directory)):
        publish_bytes(directory / RESULTS_FILE, text.encode())
    if not any(one.samples for some in measured.values() for one in some):
        return {}
    with TableWriter(directory, SAMPLES, prefix="samples") as table:
        for model, some in measured.items():
            for one in some:
                table.write_rows([sample_row(model, one.task, sample, spelled) for sample in one.samples])
    return table.close()


def by_task(figures: Mapping[str, Figures]) -> dict[str, dict[str, Any]]:
    """The checkpoint's estimates by task and metric, beside chance, the untrained and the unrounded model's."""
    tasks: dict[str, dict[str, Any]] = {}
    mine, untrained, unrounded = figures[CHECKPOINT], figures.get(UNTRAINED, {}), figures.get(UNROUNDED, {})
    for name, estimate in mine.items():
        task, _, metric = name.partition(".")
        if metric == "chance":
            continue
        entry = tasks.setdefault(task, {}).setdefault(metric, estimate.as_json())
        if metric.startswith("acc") and (guessing := mine.get(f"{task}.chance")) is not None:
            entry["chance"] = guessing.value
        if (floor := untrained.get(name)) is not None:
            entry |= {"untrained": floor.value, "untrained_stderr": floor.stderr}
        if (exact := unrounded.get(name)) is not None:
            entry |= {"unrounded": exact.value, "unrounded_stderr": exact.stderr}
    return tasks
