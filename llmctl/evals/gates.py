"""Which figures an evaluation will have, so that a gate on none of them is told before anything runs."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from llmctl.config.errors import UsageError
from llmctl.config.evals import EvalConfig
from llmctl.config.tasks import GroupConfig, TaskConfig
from llmctl.evals.load import asked_for
from llmctl.evals.questions import CHOICES
from llmctl.evals.reasoning import figure_names
from llmctl.pipeline.evaluations import names_figure

HELDOUT = ("loss", "perplexity", "bits_per_byte")


def check_gates(config: EvalConfig, *, has_choices: bool, has_scorer: bool) -> None:
    """Refuse gates that name no figure, with the names there are.

    Parts of a task, whose names the data has, are told when they are known.

    Raises:
        UsageError: naming the first.
    """
    figures = list(figures_of(config, has_choices=has_choices, has_scorer=has_scorer))
    parted = {task.task for task in config.all_tasks if task.by}
    for gate in config.min:
        whole, is_part, metric = gate.partition("/")
        name = f"{whole}.{metric.rpartition('.')[2]}" if is_part and whole in parted else gate
        if not any(names_figure(name, figure) for figure in figures):
            told = [*figures, *dict.fromkeys(figure.partition(".")[2].partition(",")[0] for figure in figures)]
            close = difflib.get_close_matches(gate, told, n=1)
            there = f"the figures are {', '.join(figures)}"
            raise UsageError(
                f"--min names {gate!r}, and there is no such figure",
                hint=f"did you mean {close[0]}? {there}" if close else there,
            )


def figures_of(config: EvalConfig, *, has_choices: bool, has_scorer: bool) -> Iterator[str]:
    """Names of the figures of the whole tasks and groups, in order; the held-out ones only where rows are known."""
    names: list[str] = [] if config.server.url else [f"heldout.{name}" for name in HELDOUT]
    names += [f"{CHOICES.task}.{name}" for name in _of_task(CHOICES, has_scorer=False)] if has_choices else []
    for task in config.all_tasks:
        names += [f"{task.task}.{name}" for name in _of_task(asked_for(task, config), has_scorer=has_scorer)]
    for group in config.tasks:
        if isinstance(group, GroupConfig):
            names += _of_group(group, config, has_scorer=has_scorer)
    yield from names
    for model, is_there in (("untrained", config.baseline), ("unrounded", config.weights != "plain")):
        yield from (f"{model}.{name}" for name in names if is_there)
    if config.weights != "plain":
        yield "heldout.bits_per_byte.lost"
    for variant in config.variants:
        yield from (f"{variant}.heldout.{name}" for name in (*HELDOUT, "bits_per_byte.lost"))


def _of_task(task: TaskConfig, *, has_scorer: bool) -> list[str]:
    ways = [f",{way.name}" for way in task.filter_list] or [""]
    return [
        f"{metric.name}{way}"
        for metric in task.metric_list
        for way in (ways if task.output_type == "generate_until" and metric.metric != "pass" else [""])
    ] + figure_names(task, has_scorer=has_scorer)


def _of_group(group: GroupConfig, config: EvalConfig, *, has_scorer: bool) -> list[str]:
    names: dict[str, None] = {}
    for wanted in group.aggregate_metric_list:
        suffix = "_centred" if wanted.centred else ""
        for task in group.tasks:
            for name in _of_task(asked_for(task, config), has_scorer=has_scorer):
                if name.partition(",")[0] == wanted.metric:
                    names[f"{group.group}.{name}{suffix}"] = None
    return list(names)
