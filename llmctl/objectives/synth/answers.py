"""Answers to prompts that are there: kept as chats, or the best over the worst as a preference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmctl.config.synth import SynthConfig
from llmctl.config.ways import PreferencesWayConfig
from llmctl.objectives.asked import Message, Question, read_questions
from llmctl.objectives.synth.desk import Desk, Numbered, row_of, said_by_assistant, turns_of
from llmctl.objectives.synth.said import Said, furthest
from llmctl.objectives.synth.tally import ANSWERS
from llmctl.store.artifact import Input


class Answers:
    """One or more answers to each prompt; with `way=thoughts`, such as think first.

    Attributes:
        made: questions of the teacher's own that were no near duplicates, in order; there are none.
    """

    counted = "prompts"

    def __init__(self, config: SynthConfig) -> None:
        self._config = config
        self.made: list[str] = []

    def units(self, inputs: Mapping[str, Input]) -> list[Question]:
        """The prompts."""
        return read_questions(inputs)[: self._config.limit]

    def opening(self, unit: Question) -> list[Message]:
        """What is asked first about one."""
        return instructed(unit.messages, self._config.instructed)

    def written(self, question: Question) -> list[Message]:
        """What of the chat before an answer is written: with the instruction where that is to stay."""
        return instructed(question.messages, self._config.instructed if self._config.keep_instruction else "")

    def rows(self, units: Sequence[Numbered], desk: Desk) -> Iterator[dict[str, Any]]:
        """The chats of one part."""
        asked = desk.uncontaminated(units)
        for (_, question), said in zip(asked, desk.answered(asked, self.opening), strict=True):
            yield from chats(question, self.written(question), said, desk)


class Preferences(Answers):
    """The best of the answers to each prompt, and the worst."""

    def __init__(self, config: SynthConfig) -> None:
        super().__init__(config)
        assert isinstance(config.way, PreferencesWayConfig), "that is why"
        self._least_margin = config.way.least_margin

    def rows(self, units: Sequence[Numbered], desk: Desk) -> Iterator[dict[str, Any]]:
        """The preferences of one part."""
        asked = desk.uncontaminated(units)
        for (_, question), said in zip(asked, desk.answered(asked, self.opening), strict=True):
            pair = desk.kept(question, said, lambda several: furthest(several, self._least_margin))
            if not pair:
                continue
            best, worst = pair
            yield preference(question, self.written(question), best.text, worst.text, best.reward - worst.reward)


def chats(
    question: Question, messages: Sequence[Message], said: Sequence[Said], desk: Desk, step: str = ANSWERS
) -> Iterator[dict[str, Any]]:
    """A row for each answer that stays."""
    for number, one in enumerate(desk.kept(question, said, step=step)):
        row = row_of(question, f"answer-{number}")
        yield {**row, "messages": [*turns_of(messages), said_by_assistant(one.text)]}


def preference(
    question: Question, messages: Sequence[Message], chosen: str, rejected: str, margin: float | None
) -> dict[str, Any]:
    """A row for two answers."""
    return {
        **row_of(question, "pair"),
        "prompt": turns_of(messages),
        "chosen": [said_by_assistant(chosen)],
        "rejected": [said_by_assistant(rejected)],
        "margin": margin,
    }


def instructed(messages: Sequence[Message], instruction: str) -> list[Message]:
    """A chat with something put behind its last turn."""
    turns = list(messages)
    if instruction:
        turns[-1] = {**turns[-1], "content": f"{turns[-1]['content']}\n{instruction}"}
    return turns
