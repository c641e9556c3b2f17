"""Questions that a passage of a document answers, and answers that stand in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmctl.config.errors import InputError, UsageError
from llmctl.config.synth import SynthConfig
from llmctl.config.ways import QuestionsConfig
from llmctl.data.likeness import Known, words_of
from llmctl.data.tables import read_batches
from llmctl.objectives.asked import Message, Question
from llmctl.objectives.synth.answers import chats
from llmctl.objectives.synth.desk import Desk, Numbered
from llmctl.objectives.synth.instruct import PLACES
from llmctl.objectives.synth.said import Said
from llmctl.objectives.synth.tally import QUESTIONS
from llmctl.store.artifact import Input

MARKS = re.compile(r"^(?:\d+[.)]\s*|[-*]\s+|(?:question|q)\s*:\s*)+", re.IGNORECASE)  # before a question
PASSAGE = "passage"  # among a question's fields


class Passages:
    """Passages in the place of prompts.

    Attributes:
        made: questions, those that were no near duplicates, in order; a run that goes on fills it in.
    """

    counted = "passages"

    def __init__(self, config: SynthConfig) -> None:
        assert isinstance(config.way, QuestionsConfig), "that is why"
        self._config, self._way = config, config.way
        self._form = re.compile(config.way.form)
        self._known: Known | None = None
        self.made: list[str] = []

    def units(self, inputs: Mapping[str, Input]) -> list[Question]:
        """The passages of all documents, in order.

        Raises:
            InputError: none is long enough.
            UsageError: there are no documents, or prompts or chats beside them.
        """
        if "documents" not in inputs or {"prompts", "chats"} & set(inputs):
            raise UsageError("way=questions asks about documents alone", hint="give --documents REF, and no prompts")
        found: list[Question] = []
        for batch in read_batches(inputs["documents"], ["id", "text", "source"]):
            for name, text, source in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                found += [
                    Question(f"{name}?passage-{number}", [], None, name, source, {PASSAGE: passage}, passage)
                    for number, passage in enumerate(passages_in(text, self._way.passage_words))
                    if len(passage.split()) >= self._way.least_passage_words
                ]
                if self._config.limit is not None and len(found) >= self._config.limit:
                    return found[: self._config.limit]
        if not found:
            raise InputError(
                f"{inputs['documents'].ref} holds no passage of {self._way.least_passage_words} words",
                hint="lower way.least_passage_words",
            )
        return found

    def opening(self, unit: Question) -> list[Message]:
        """The passage, and the request for a question."""
        return [{"role": "user", "content": self._asked(unit)}]

    def _asked(self, unit: Question) -> str:
        return self._way.prompt.replace("{passage}", unit.spoken)

    def rows(self, units: Sequence[Numbered], desk: Desk) -> Iterator[dict[str, Any]]:
        """The chats of one part."""
        asked = desk.uncontaminated(self._new(units, desk), enter=False)
        said = desk.answered(asked, self._with_passage, self._groundless)
        for (_, question), several in zip(asked, said, strict=True):
            messages = self._with_passage(question) if self._way.keep_passage else question.messages
            yield from chats(question, messages, several, desk)

    def _new(self, units: Sequence[Numbered], desk: Desk) -> list[Numbered]:
        """The questions that have their form and are asked for the first time."""
        if self._known is None:
            self._known = Known(self._way.most_similar, self.made)
        known = self._known
        found: list[Numbered] = []
        for (number, unit), said in zip(
            units, desk.ask_step(QUESTIONS, units, self._way.per_passage, self._asked), strict=True
        ):
            for place, one in enumerate(said):
                text = question_in(one.text)
                fault = one.fault or ("" if self._form.search(text) else "malformed")
                if not fault and known.holds(text):
                    fault = "near_duplicate"
                if fault:
                    desk.tally.drop(QUESTIONS, fault, one, unit)
                    continue
                known.add(text)
                self.made.append(text)
                messages = [{"role": "user", "content": text}]
                fields = {PASSAGE: unit.spoken}
                question = Question(f"{unit.id}.{place}", messages, None, unit.document, unit.source, fields, text)
                found.append((number * PLACES + place, question))
        return found

    def _with_passage(self, question: Question) -> list[Message]:
        text = self._way.answer.replace("{question}", question.spoken)
        return [{"role": "user", "content": text.replace("{passage}", question.fields[PASSAGE])}]

    def _groundless(self, question: Question, one: Said) -> str:
        grounded = share_in(one.text, question.fields[PASSAGE]) >= self._way.least_grounded
        return "" if grounded else "ungrounded"


def passages_in(text: str, most_words: int) -> Iterator[str]:
    """Whole paragraphs up to so many words together; a longer paragraph is cut between words."""
    taken: list[str] = []
    count = 0
    for paragraph in re.split(r"\n\s*\n", text):
        words = len(paragraph.split())
        if taken and count + words > most_words:
            yield "\n\n".join(taken)
            taken, count = [], 0
        if words > most_words:
            yield from _cut(paragraph, most_words)
        elif words:
            taken.append(paragraph.strip())
            count += words
    if taken:
        yield "\n\n".join(taken)


def _cut(paragraph: str, most_words: int) -> Iterator[str]:
    ends = [word.end() for word in re.finditer(r"\S+", paragraph)]
    start = 0
    for end in [*ends[most_words - 1 :: most_words], ends[-1]]:
        if end > start:
            yield paragraph[start:end].strip()
        start = end


def question_in(text: str) -> str:
    """The first line, without a number or a mark before it."""
    return MARKS.sub("", text.strip().partition("\n")[0].strip()).strip().strip('"').strip()


def share_in(answer: str, passage: str) -> float:
    """What share of an answer's words stands in the passage, whatever their case; 1 of none."""
    words, there = words_of(answer), set(words_of(passage))
    return sum(word in there for word in words) / len(words) if words else 1.0
