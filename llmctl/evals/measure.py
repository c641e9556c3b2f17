"""One task on one model: asked, answered, and made into figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmctl.config.errors import InputError
from llmctl.config.evals import EvalConfig
from llmctl.config.tasks import AGGREGATIONS, GroupConfig, MetricConfig, TaskConfig
from llmctl.evals import scoring
from llmctl.evals.cache import RefusedError, RequestCache, answered
from llmctl.evals.checks import passes, programs_of
from llmctl.evals.filters import FIRST, each
from llmctl.evals.items import Item
from llmctl.evals.load import Loaded
from llmctl.evals.local import TOO_LONG
from llmctl.evals.metrics import Named, Outcome, Value, loss_curve, outcome_of
from llmctl.evals.reasoning import spent
from llmctl.evals.requests import Answer, Generation, Likely, Model, Skipped, Written, key_of
from llmctl.evals.sandbox.verdict import Verdict
from llmctl.evals.sandbox.verify import verify
from llmctl.evals.scorer import Scorer
from llmctl.evals.scoring import Estimate

UNCHECKED = "unchecked"
Figures = dict[str, Estimate]
"""Estimates by `task.metric`; `task/part.metric` of a subtask, `task.metric,filter` where there are several ways."""


@dataclass
class Sample:
    """An item with what the model answered and what became of it; no outcome where it was left out.

    Of programs, the verdicts of the sandbox.
    """

    item: Item
    answers: Sequence[Answer]
    outcome: Outcome | None
    skipped: str = ""
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True)
class Measured:
    """A task on one model.

    Attributes:
        task: its name.
        samples: every item that was asked.
        figures: what came out.
        curves: tables of what is drawn: calibration, loss by position.
        skipped: items left out, by reason.
    """

    task: str
    samples: Sequence[Sample]
    figures: Figures
    curves: Mapping[str, Any]
    skipped: Mapping[str, int] = field(default_factory=dict)


def measured(
    task: Loaded,
    model: Model,
    cache: RequestCache,
    settings: EvalConfig,
    done: Callable[[int, int], None],
    scorer: Scorer | None = None,
) -> Measured:
    """Ask everything and work out the figures.

    Args:
        task: what is asked.
        model: who is.
        cache: of its answers.
        settings: of the evaluation.
        done: told how many requests have an answer, and of how many.
        scorer: a reward model that chooses among several texts.

    Raises:
        InputError: an item cannot be asked and may not be left out, or none has an answer.
    """
    config, items = task.config, task.items
    requests = [request for item in items for request in item.requests]
    try:
        answers = iter(
            answered(
                model, requests, cache, lambda count: done(count, len(requests)),
                {TOO_LONG} if settings.overlong == "refuse" else (),
            )
        )  # fmt: skip
    except RefusedError as error:
        culprit = next(item for item in items if error.key in map(key_of, item.requests))
        raise InputError(
            f"{config.task}: item {culprit.id} {error.skipped.detail}",
            hint="--overlong truncate cuts such prompts at their front, --overlong skip leaves them out, "
            "--shots N takes fewer examples",
        ) from None
    samples = [_sample(config, item, [next(answers) for _ in item.requests]) for item in items]
    if config.check is not None:
        _check(config, samples)
    if scorer is not None:
        _score(scorer, samples)
    skipped = Counter(sample.skipped for sample in samples if sample.skipped)
    if sum(skipped.values()) == len(samples):
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
        detail = next((one.detail for sample in samples for one in sample.answers if isinstance(one, Skipped)), "")
        raise InputError(f"{config.task}: no item has an answer: {reasons}", hint=detail or "see the log")
    figures, curves = figures_of(config, samples, settings.bootstrap)
    return Measured(config.task, samples, figures, curves, skipped)


def _sample(config: TaskConfig, item: Item, answers: Sequence[Answer]) -> Sample:
    missing = next((answer for answer in answers if isinstance(answer, Skipped)), None)
    if missing is not None:
        return Sample(item, answers, None, missing.reason)
    got = [answer for answer in answers if isinstance(answer, Likely | Written)]
    if any(isinstance(one, Likely) and math.isnan(one.logprob) for one in got):
        raise InputError(f"{config.task}: the log-likelihood of item {item.id} is NaN", hint="the weights are damaged")
    return Sample(item, answers, outcome_of(config, item, got))


def _score(scorer: Scorer, samples: Sequence[Sample]) -> None:
    """Give every one of several texts what the reward model says of it."""
    asked = [
        (draw, request.prompt, answer.text)
        for sample in samples
        if sample.outcome is not None and sample.outcome.draws
        for draw, request, answer in zip(sample.outcome.each_draw(), sample.item.requests, sample.answers, strict=True)
        if isinstance(request, Generation) and isinstance(answer, Written)
    ]
    scores = scorer.score([prompt for _, prompt, _ in asked], [text for _, _, text in asked])
    for (draw, _, _), score in zip(asked, scores, strict=True):
        draw.score = score


def _check(config: TaskConfig, samples: Sequence[Sample]) -> None:
    """Run the programs of all items, and give each the chance that k of its answers hold a right one."""
    assert config.check is not None
    way = (config.filter_list or (FIRST,))[0]
    asked = [sample for sample in samples if sample.outcome is not None]
    programs = []
    for sample in asked:
        texts = [one.text for one in sample.answers if isinstance(one, Written)]
        programs.append(programs_of(config.check, config.task, sample.item, each(texts, way)))
    verdicts = iter(verify([program for some in programs for program in some]))
    for sample, some in zip(asked, programs, strict=True):
        sample.verdicts = tuple(next(verdicts) for _ in some)
        assert sample.outcome is not None
        for draw, verdict in zip(sample.outcome.each_draw(), sample.verdicts, strict=False):
            draw.right = verdict.score
        right = [one.score == 1.0 for one in sample.verdicts[-config.repeats :] if one.score is not None]
        if len(right) < max(metric.k for metric in config.metric_list):
            sample.outcome, sample.skipped = None, UNCHECKED
            continue
        for metric in config.metric_list:
            if metric.metric == "pass":
                sample.outcome.values[metric.name, ""] = passes(sum(right), len(right), metric.k)


def figures_of(config: TaskConfig, samples: Sequence[Sample], draws: int) -> tuple[Figures, dict[str, Any]]:
    """Figures of a task and of its parts, and what is drawn."""
    figures: Figures = {}
    parts = dict.fromkeys(sample.item.part for sample in samples if sample.outcome is not None)
    for name in parts if config.by else ():
        own = [sample for sample in samples if sample.item.part == name]
        found, _ = _figures(config, own, draws)
        figures |= {f"{config.task}/{name.replace('.', '_')}.{key}": value for key, value in found.items()}
    whole, curves = _figures(config, samples, draws)
    if config.by:  # as a group of the harness, whose error is pooled from those of its tasks
        whole = {key: _of_parts(figures, config.task, key) or value for key, value in whole.items()}
    figures = {f"{config.task}.{key}": value for key, value in whole.items()} | figures
    counts = [len(sample.item.choices) for sample in samples if sample.outcome is not None and sample.item.choices]
    guessing = scoring.chance(counts) if counts and config.chance is None else config.chance
    if guessing is not None:
        answered = sum(sample.outcome is not None for sample in samples)
        figures[f"{config.task}.chance"] = Estimate(guessing, answered)
    return figures, curves


def _figures(config: TaskConfig, samples: Sequence[Sample], draws: int) -> tuple[Figures, dict[str, Any]]:
    values: dict[Named, list[Value]] = {}
    for sample in samples:
        for named, value in (sample.outcome.values if sample.outcome is not None else {}).items():
            values.setdefault(named, []).append(value)
    metrics = {metric.name: metric for metric in config.metric_list}
    figures: Figures = {}
    curves: dict[str, Any] = {}
    for (name, way), some in values.items():
        estimate, table = _estimate(metrics[name], some, draws)
        figures[f"{name},{way}" if way else name] = estimate
        if table is not None:
            curves[name] = table
    if table := spent([sample.outcome.draws for sample in samples if sample.outcome is not None]):
        figures |= {row.name: row.share for row in table}
        curves["spent"] = [row.as_json() for row in table]
    return figures, curves


def _estimate(metric: MetricConfig, values: Sequence[Any], draws: int) -> tuple[Estimate, Any]:
    """One figure, and its table where it is drawn."""
    if metric.metric == "ece":
        error, table = scoring.calibration(values)
        return Estimate(error, len(values)), table
    if metric.metric == "loss_by_position":
        tokens = [one for item in values for one in item]
        return Estimate(-math.fsum(tokens) / max(1, len(tokens)), len(tokens)), loss_curve(values)
    kind = AGGREGATIONS.get(metric.metric, "mean")
    if kind == "perplexity":
        return scoring.perplexity(values, draws), None
    if kind == "weighted_perplexity":
        return Estimate(scoring.exponential(-scoring.weighted(values)), len(values)), None
    if kind == "bits_per_byte":
        return Estimate(-scoring.weighted(values) / math.log(2), len(values)), None
    return scoring.mean(values), None


def _of_parts(figures: Figures, task: str, key: str) -> Estimate | None:
    """The mean over the parts, weighted by their items; None of what is no mean."""
    if key.partition(",")[0] in (*AGGREGATIONS, "ece", "loss_by_position"):
        return None
    return scoring.pooled([value for name, value in figures.items() if _is_part(name, task, key)], by_size=True)


def _is_part(name: str, task: str, key: str) -> bool:
    return name.startswith(f"{task}/") and name.partition(".")[2] == key


def group_figures(groups: Sequence[GroupConfig], figures: Mapping[str, Estimate]) -> Figures:
    """Figures of groups; a task that lacks the metric takes no part."""
    found: Figures = {}
    for group in groups:
        for wanted in group.aggregate_metric_list:
            members: dict[str, list[Estimate]] = {}
            for task in group.tasks:
                for name, value in figures.items():
                    owner, _, key = name.partition(".")
                    if owner == task.task and key.partition(",")[0] == wanted.metric:
                        guessing = figures.get(f"{owner}.chance") if wanted.centred else None
                        members.setdefault(key, []).append(_centred(value, guessing))
            for key, estimates in members.items():
                suffix = "_centred" if wanted.centred else ""
                figure = scoring.pooled(estimates, by_size=wanted.weight_by_size)
                found[f"{group.group}.{key}{suffix}"] = figure
    return found


def _centred(estimate: Estimate, guessing: Estimate | None) -> Estimate:
    """The figure with guessing at 0 and all right at 1."""
    if guessing is None:
        return estimate
    scale = 1 - guessing.value
    error = None if estimate.stderr is None else estimate.stderr / scale
    return Estimate((estimate.value - guessing.value) / scale, estimate.n, error)
