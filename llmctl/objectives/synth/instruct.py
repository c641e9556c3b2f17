"""Self-instruct: new tasks after the pattern of given ones, and answers to those that are like none before.

(Wang et al. 2022, arXiv:2212.10560.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmctl.config.synth import SynthConfig
from llmctl.config.ways import SelfInstructConfig
from llmctl.data.lessons.draw import pick
from llmctl.data.likeness import Known
from llmctl.objectives.asked import Message, Question, read_questions
from llmctl.objectives.synth.answers import chats, instructed
from llmctl.objectives.synth.desk import Desk, Numbered
from llmctl.objectives.synth.said import Said
from llmctl.objectives.synth.tally import QUESTIONS, TASKS
from llmctl.store.artifact import Input

NUMBERED = re.compile(r"^\s*(?:task\s+)?\d+\s*[.):]\s*(.*)$", re.IGNORECASE)
PLACES = 4096  # so many questions of one unit have numbers of their own


class SelfInstruct:
    """Tasks in the place of prompts.

    What the teacher is shown, and what counts as known, are the given tasks and its own of earlier parts.

    Attributes:
        made: its own tasks, those that were no near duplicates, in order; a run that goes on fills it in.
    """

    counted = "times"

    def __init__(self, config: SynthConfig) -> None:
        assert isinstance(config.way, SelfInstructConfig), "that is why"
        self._config, self._way = config, config.way
        self._given: list[str] = []
        self._known: Known | None = None
        self.made: list[str] = []

    def units(self, inputs: Mapping[str, Input]) -> list[Question]:
        """So many times is it asked."""
        given = read_questions(inputs)[: self._config.limit]
        self._given = [question.messages[-1]["content"] for question in given]
        origin = next(inputs[role] for role in ("prompts", "chats") if role in inputs).as_input().digest[7:19]
        return [
            Question(f"{origin}:task-{number}", [], document="", source="self_instruct", text=str(number))
            for number in range(self._way.times)
        ]

    def opening(self, unit: Question) -> list[Message]:
        """The tasks that are shown, and the request for another."""
        return [{"role": "user", "content": self._asked(unit)}]

    def _asked(self, unit: Question) -> str:
        """`shown` tasks in an order that is drawn, as many of its own among them as there may be."""
        way, seed = self._way, self._config.seed
        own = pick(self.made, way.shown_new, seed, unit.id, "new")
        shown = [*pick(self._given, way.shown - len(own), seed, unit.id, "given"), *own]
        tasks = pick(shown, len(shown), seed, unit.id, "order")
        return way.prompt.replace("{tasks}", "\n".join(f"{n}. {task}" for n, task in enumerate(tasks, start=1)))

    def rows(self, units: Sequence[Numbered], desk: Desk) -> Iterator[dict[str, Any]]:
        """The chats of one part."""
        asked = desk.uncontaminated(self._new(units, desk), enter=False)
        said = desk.answered(asked, lambda task: instructed(task.messages, self._config.instructed))
        for (_, task), several in zip(asked, said, strict=True):
            yield from chats(task, task.messages, several, desk)

    def _new(self, units: Sequence[Numbered], desk: Desk) -> list[Numbered]:
        """What the teacher proposes, without near duplicates of what there is."""
        if self._known is None:
            self._known = Known(self._way.most_similar, [*self._given, *self.made])
        known = self._known
        found: list[Numbered] = []
        for (number, unit), (one,) in zip(units, desk.ask_step(TASKS, units, 1, self._asked), strict=True):
            if one.fault:
                desk.tally.drop(TASKS, one.fault, one, unit)
                continue
            tasks = tasks_in(one.text)[:PLACES]
            desk.tally.enter(QUESTIONS, tasks)
            for place, text in enumerate(tasks):
                task = Question(
                    f"{unit.id}.{place}", [{"role": "user", "content": text}], None, "", unit.source, {}, text
                )
                if known.holds(text):
                    desk.tally.drop(QUESTIONS, "near_duplicate", Said(text, 0), task)
                    continue
                known.add(text)
                self.made.append(text)
                found.append((number * PLACES + place, task))
        return found


def tasks_in(text: str) -> list[str]:
    """The items of a numbered list, each in one line; the first paragraph where nothing is numbered."""
    items: list[list[str]] = []
    for line in text.splitlines():
        if (match := NUMBERED.match(line)) is not None:
            items.append([match[1]])
        elif items and line.strip():
            items[-1].append(line)
    found = [" ".join(" ".join(lines).split()) for lines in items] or [" ".join(text.strip().split("\n\n")[0].split())]
    return [task for task in found if task]
