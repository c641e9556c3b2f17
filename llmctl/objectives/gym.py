"""Prompts that reasoning-gym makes: of the configuration alone, in a process whose hashes are the same in every run."""

from __future__ import annotations

from contextlib import closing

from llmctl.config.errors import InputError
from llmctl.config.gym import GymConfig
from llmctl.objectives.asked import Question
from llmctl.objectives.rewards.guarded import Guarded
from llmctl.objectives.rewards.rules import NoRewardError

LIST_S = 3600.0  # for the prompts of one task


def gym_questions(config: GymConfig) -> list[Question]:
    """The prompts of all tasks, one task after the other; each row's column `gym` says what made it.

    Raises:
        InputError: a task is unknown, takes no such options, or fails.
    """
    found: list[Question] = []
    with closing(Guarded({"do": "gym", "tag": ""}, LIST_S)) as child:
        for task, count in zip(config.tasks, config.counts(), strict=True):
            if not count:
                continue
            made_of = {"task": task.name, "size": count, "seed": config.seed, "options": task.options}
            try:
                items = child.ask({"list": made_of})
            except NoRewardError as error:
                raise InputError(f"reasoning-gym: {task.name}: {error}", hint="see gym.tasks") from None
            for index, (question, answer) in enumerate(items):
                text = f"{question}\n{config.instruction}" if config.instruction else question
                name = f"gym/{task.name}/{config.seed}/{index}"
                asked = [{"role": "user", "content": text}]
                fields = {"gym": {**made_of, "index": index}}
                found.append(Question(name, asked, answer, name, "reasoning-gym", fields, text))
    return found
