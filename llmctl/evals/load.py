"""Tasks with their data: which rows are asked, which are examples, and which belong together."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmctl.config.errors import InputError, UsageError
from llmctl.config.evals import EvalConfig
from llmctl.config.tasks import TaskConfig
from llmctl.data.raw import raw_rows
from llmctl.evals.haystack import haystack_rows
from llmctl.evals.items import Asker, Item, Row
from llmctl.evals.math_answers import verified
from llmctl.evals.sandbox.box import Sandbox
from llmctl.evals.sandbox.verify import refuse_where_impossible
from llmctl.evals.shots import Shots
from llmctl.store.artifact import Input
from llmctl.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Loaded:
    """A task and what it asks.

    Attributes:
        config: the task.
        items: what is asked, in order.
        given: how many rows its data has.
        chat: whether prompts go through the chat template.
    """

    config: TaskConfig
    items: tuple[Item, ...]
    given: int
    chat: bool


def check_data(config: EvalConfig, data: Mapping[str, Input]) -> None:
    """Refuse data of no task, and tasks without data, before anything is read.

    Raises:
        UsageError: naming all of them.
    """
    tasks = {task.task: task for task in config.all_tasks}
    known = {name for task in tasks.values() for name in (task.task, f"{task.task}.{task.pool}")}
    if strange := sorted(set(data) - known):
        raise UsageError(
            f"--data {strange[0]}=… belongs to none of the tasks {', '.join(tasks) or '(none)'}",
            hint="name the task, or task.split for its examples, as in --data gsm8k.train=train.jsonl",
        )
    if missing := [name for name in tasks if name not in data]:
        raise UsageError(
            f"no data for {', '.join(missing)}", hint=f"nothing is downloaded: --data {missing[0]}=FILE names it"
        )


def check_able(config: EvalConfig) -> None:
    """Refuse tasks that cannot be scored here, before anything is asked.

    Raises:
        InputError: programs cannot be run here, and why.
        UsageError: a package is missing.
    """
    if any(task.check is not None for task in config.all_tasks):
        with Sandbox() as box:
            refuse_where_impossible(box, "leave out the tasks that run programs")
    if any(metric.metric == "math_verify" for task in config.all_tasks for metric in task.metric_list):
        verified("1", "1")


def check_reasoning(config: EvalConfig, *, has_scorer: bool) -> None:
    """Refuse ways to spend tokens on texts where no task has such texts.

    Raises:
        UsageError: so it is.
    """
    tasks = [asked_for(task, config) for task in config.all_tasks]
    if (config.draws or config.budget) and all(task.output_type != "generate_until" for task in tasks):
        raise UsageError(
            "--draws and --budget are of texts, and no task has the model write any", hint="leave them out"
        )
    if has_scorer and all(task.repeats == 1 for task in tasks):
        raise UsageError("--scorer chooses among several texts of an item, and no task has them", hint="give --draws 8")


def loaded(
    config: TaskConfig, settings: EvalConfig, data: Mapping[str, Input], tokenizer: Tokenizer | None, *, chat: bool
) -> Loaded:
    """Read and build everything that one task asks.

    Args:
        config: the task.
        settings: of the evaluation.
        data: by `task` and `task.split`.
        tokenizer: the model's, for texts of a length in tokens; None where it is not known.
        chat: whether prompts go through the chat template.

    Raises:
        InputError: a fault of the data, with where it is.
    """
    config = asked_for(config, settings)
    rows = _ordered(config, settings, _rows(config, data[config.task]))
    if config.haystack is not None:
        rows = haystack_rows(config.haystack, rows, tokenizer, seed=settings.seed)
    pool = _pool(config, rows, data)
    asker = Asker(config, chat=chat, seed=settings.seed)
    items: list[Item] = []
    for part, own in _parts(config, rows).items():
        shots = Shots(
            [row.doc for row in pool if not config.by or str(row.doc.get(config.by)) == part],
            config.num_fewshot,
            config.fewshot_config,
            seed=settings.shots_seed,
            leaves_out=pool is rows or config.leaves_out,
            task=f"{config.task}/{part}" if part else config.task,
        )
        items += asker.items(_chosen(config, settings, own), shots, part)
    return Loaded(config, tuple(items), len(rows), chat)


def asked_for(config: TaskConfig, settings: EvalConfig) -> TaskConfig:
    """The task as the settings of the evaluation change it: its examples, texts of each item, and budgets.

    Raises:
        UsageError: it measures more texts than are drawn.
    """
    changes: dict[str, Any] = {}
    if settings.shots is not None:
        changes["num_fewshot"] = settings.shots
    if config.output_type == "generate_until":
        if settings.budget:
            changes["budget"] = config.budget.model_copy(update={"tokens": tuple(sorted(set(settings.budget)))})
        if settings.draws is not None:
            changes |= _drawn(config, settings.draws, settings.temperature)
    return config.model_copy(update=changes)


def _drawn(config: TaskConfig, draws: int, temperature: float) -> dict[str, Any]:
    if (most := max(metric.k for metric in config.metric_list)) > draws:
        raise UsageError(f"{config.task} measures pass@{most}, of {draws} texts", hint=f"--draws {most} or more")
    how = config.generation_kwargs
    if draws > 1 and not how.do_sample:
        how = how.model_copy(update={"do_sample": True, "temperature": temperature})
    return {"repeats": draws, "generation_kwargs": how}


def _ordered(config: TaskConfig, settings: EvalConfig, rows: list[Row]) -> list[Row]:
    """The rows in the order in which they are asked; nanochat takes its limit before it draws examples from them."""
    if config.shuffle_seed is not None:
        random.Random(config.shuffle_seed).shuffle(rows)  # noqa: S311 - nanochat's own
    if config.fewshot_config.sampler == "by_item":
        rows = rows[: settings.limit]
    return [replace(row, order=place) for place, row in enumerate(rows)]


def _rows(config: TaskConfig, given: Input) -> list[Row]:
    rows = [Row(number, f"{given.ref} ({where})", doc) for number, (where, doc) in enumerate(raw_rows(given))]
    if not rows:
        raise InputError(f"{given.ref} holds no item of the task {config.task}", hint="give a file with rows")
    return rows


def _pool(config: TaskConfig, rows: list[Row], data: Mapping[str, Input]) -> list[Row]:
    """What examples are drawn from; `rows` itself where the items are their own examples."""
    if not config.num_fewshot:
        return []
    if samples := config.fewshot_config.samples:
        return [Row(number, f"example {number} of {config.task}", doc) for number, doc in enumerate(samples)]
    if config.pool is None:
        return rows
    name = f"{config.task}.{config.pool}"
    if name not in data:
        raise UsageError(
            f"{config.task} takes its {config.num_fewshot} examples from the split {config.pool}, which is not given",
            hint=f"--data {name}=FILE names it; --shots 0 asks without examples",
        )
    return _rows(config, data[name])


def _parts(config: TaskConfig, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by subtask, in the order in which the subtasks come."""
    if not config.by:
        return {"": list(rows)}
    parts: dict[str, list[Row]] = {}
    for row in rows:
        value: Any = row.doc.get(config.by)
        if value is None:
            raise InputError(
                f"{row.where} has no {config.by!r}, by which {config.task} is parted", hint="add the field"
            )
        parts.setdefault(str(value), []).append(row)
    return parts


def _chosen(config: TaskConfig, settings: EvalConfig, rows: Sequence[Row]) -> list[Row]:
    """Those rows that are asked."""
    wanted = settings.samples.get(config.task)
    if wanted is not None:
        rows = [row for row in rows if row.number in set(wanted)]
    return list(rows[: settings.limit])
