"""Figures and samples of an evaluation, and the files that hold them (schema llmctl.eval/1)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from llmctl.config.evals import RESULTS_FILE
from llmctl.data.table_writer import TableWriter
from llmctl.evals import scoring
from llmctl.evals.questions import Asked
from llmctl.evals.scoring import Estimate
from llmctl.pipeline.job import FileFacts
from llmctl.store.files import explained, publish_bytes
from llmctl.train.heldout import HeldOut

SCHEMA = "llmctl.eval/1"
CHECKPOINT, UNTRAINED, UNROUNDED = "checkpoint", "untrained", "unrounded"

Figures = dict[str, Estimate]
"""Estimates by `task.metric`."""


def _list_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))


SAMPLES = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in (
            ("model", pa.string()),
            ("id", pa.string()),
            ("prompt", pa.string()),
            ("choices", _list_of(pa.string())),
            ("log_likelihoods", _list_of(pa.float64())),
            ("prediction", pa.int32()),
            ("prediction_norm", pa.int32()),
            ("answer", pa.int32()),
        )
    ]
)


@dataclass(frozen=True)
class Answered:
    """One question as it was asked, and the log-likelihood in nats of each of its choices."""

    asked: Asked
    log_likelihoods: tuple[float, ...]

    @property
    def answer(self) -> int:
        """The right choice."""
        return self.asked.question.answer

    @property
    def prediction(self) -> int:
        """The likeliest choice."""
        return scoring.best(self.log_likelihoods)

    @property
    def prediction_norm(self) -> int:
        """The likeliest choice per character."""
        return scoring.best_by_characters(self.log_likelihoods, self.asked.choices)

    def as_row(self, model: str) -> dict[str, Any]:
        """The row of the samples table; `prompt` and `choices` are the texts that were really scored."""
        return {
            "model": model,
            "id": self.asked.question.id,
            "prompt": self.asked.prompt,
            "choices": list(self.asked.choices),
            "log_likelihoods": list(self.log_likelihoods),
            "prediction": self.prediction,
            "prediction_norm": self.prediction_norm,
            "answer": self.answer,
        }


def heldout_figures(heldout: HeldOut) -> Figures:
    """Loss in nats per token, its perplexity, and bits per byte of text; none has a standard error.

    The first two are over `n` tokens, the last over `n` bytes.
    """
    return {
        "heldout.loss": Estimate(heldout.loss, heldout.targets),
        "heldout.perplexity": Estimate(heldout.perplexity, heldout.targets),
        "heldout.bits_per_byte": Estimate(heldout.bits_per_byte, heldout.bytes),
    }


def choice_figures(answers: Sequence[Answered]) -> Figures:
    """Accuracy of the likeliest choice, the same per character, and what guessing gives."""
    right = [float(answer.prediction == answer.answer) for answer in answers]
    right_norm = [float(answer.prediction_norm == answer.answer) for answer in answers]
    guessing = scoring.chance([len(answer.asked.choices) for answer in answers])
    return {
        "choices.acc": scoring.mean(right),
        "choices.acc_norm": scoring.mean(right_norm),
        "choices.chance": Estimate(guessing, len(answers)),
    }


def flat(figures: Mapping[str, Figures]) -> dict[str, int | float | str]:
    """Headline figures for the manifest (`choices.acc`, `choices.acc.stderr`, `untrained.choices.acc`).

    What does not depend on the model (chance) is listed once. Where weights were rounded,
    `heldout.bits_per_byte.lost` is what that added.
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
    bits = "heldout.bits_per_byte"
    if bits in figures.get(UNROUNDED, {}):
        totals[f"{bits}.lost"] = figures[CHECKPOINT][bits].value - figures[UNROUNDED][bits].value
    return totals


def write(
    directory: Path,
    figures: Mapping[str, Figures],
    answers: Mapping[str, Iterable[Answered]],
    settings: Mapping[str, Any],
) -> dict[str, FileFacts]:
    """Write `results.json`, and `samples-00000.parquet` where questions were asked.

    Args:
        directory: `job.out`.
        figures: by model, `checkpoint` first.
        answers: by model.
        settings: what decided the figures, to be read beside them.

    Returns:
        Facts by file name.
    """
    content = {"schema": SCHEMA, "settings": dict(settings), "tasks": _by_task(figures)}
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    with explained(str(directory)):
        publish_bytes(directory / RESULTS_FILE, text.encode())
    rows = [answer.as_row(model) for model, given in answers.items() for answer in given]
    if not rows:
        return {}
    with TableWriter(directory, SAMPLES, prefix="samples") as table:
        table.write_rows(rows)
    return table.close()


def _by_task(figures: Mapping[str, Figures]) -> dict[str, dict[str, Any]]:
    """The checkpoint's estimates by task and metric, beside chance, the untrained and the unrounded model's."""
    tasks: dict[str, dict[str, Any]] = {}
    mine, untrained, unrounded = figures[CHECKPOINT], figures.get(UNTRAINED, {}), figures.get(UNROUNDED, {})
    for name, estimate in mine.items():
        task, _, metric = name.partition(".")
        if metric == "chance":
            continue
        entry = tasks.setdefault(task, {}).setdefault(metric, estimate.as_json())
        if (guessing := mine.get(f"{task}.chance")) is not None:
            entry["chance"] = guessing.value
        if (floor := untrained.get(name)) is not None:
            entry |= {"untrained": floor.value, "untrained_stderr": floor.stderr}
        if (exact := unrounded.get(name)) is not None:
            entry |= {"unrounded": exact.value, "unrounded_stderr": exact.stderr}
    return tasks
