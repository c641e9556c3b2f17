"""Items of a task as they are asked: prompts, choices and the right answer, by the rules of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llmctl.config.errors import InputError
from llmctl.config.tasks import TaskConfig
from llmctl.evals.requests import Apart, Ending, Generation, Likelihood, Prompt, Request, Rolling
from llmctl.evals.shots import Shots
from llmctl.evals.templates import Doc, Field, texts


@dataclass(frozen=True)
class Item:
    """One item, ready to be asked.

    Attributes:
        part: the subtask that it belongs to; empty where the task has none.
        number: its place in the data, from 0.
        id: its `id` in the data, or where it stands.
        doc: as in the data.
        requests: what is asked of the model.
        choices: texts that are chosen among, whose lengths normalise; empty where nothing is chosen.
        right: indices of the right choices.
        targets: right answers of a generation, the text of a rolling likelihood, or the continuation.
        original: the text whose words and bytes a rolling likelihood is counted over.
    """

    part: str
    number: int
    id: str
    doc: Doc
    requests: tuple[Request, ...]
    choices: tuple[str, ...] = ()
    right: tuple[int, ...] = ()
    targets: tuple[str, ...] = ()
    original: str = ""


@dataclass(frozen=True)
class Row:
    """One row of the data: where it stands, its values, and its place in the order in which items come."""

    number: int
    where: str
    doc: Doc = field(hash=False)
    order: int = 0

    @property
    def id(self) -> str:
        """Its own `id`, or where it stands."""
        own = self.doc.get("id", self.doc.get("task_id"))
        return str(own) if isinstance(own, str | int) and own != "" else self.where


def _apart(asked: Sequence[Likelihood], shared: Literal["start", "end"]) -> Iterator[Apart]:
    """The same requests, each beside all of their texts."""
    whole = tuple(one.prompt.text + one.continuation for one in asked)
    return (Apart(one.prompt, one.continuation, whole, shared) for one in asked)


class Asker:
    """Turns rows of one task into items.

    Args:
        config: the task.
        chat: whether prompts go through the model's chat template.
        seed: of texts that are drawn.
    """

    def __init__(self, config: TaskConfig, *, chat: bool, seed: int = 0) -> None:
        self.config, self.chat, self._seed = config, chat, seed
        fields = {
            name: Field(name, str(getattr(config, name)), config.task) for name in ("doc_to_text", "doc_to_target")
        }
        self._text, self._target = fields["doc_to_text"], fields["doc_to_target"]
        self._description = Field("description", config.description, config.task)
        self._original = Field("doc_to_original", config.doc_to_original, config.task)
        choice = config.doc_to_choice
        self._choice = Field("doc_to_choice", choice, config.task) if isinstance(choice, str) else None
        self._fixed = [Field("doc_to_choice", one, config.task) for one in choice] if isinstance(choice, tuple) else []

    def items(self, rows: Sequence[Row], shots: Shots, part: str = "") -> Iterator[Item]:
        """Items of one subtask in order, which decides the examples.

        Raises:
            InputError: a row lacks a field, or its right answer is no choice.
        """
        for row in rows:
            yield self._item(row, shots.draw(row.doc, row.order), part)

    def _item(self, row: Row, shots: Sequence[Doc], part: str) -> Item:
        where, doc, kind = row.where, row.doc, self.config.output_type
        before = self._before(doc, shots, where)
        if kind == "multiple_choice":
            return self._choosing(row, before, part)
        if kind == "loglikelihood_rolling":
            whole = self._target.text(doc, where)
            original = self._original.text(doc, where) if self.config.doc_to_original else whole
            return Item(part, row.number, row.id, doc, (Rolling(whole),), targets=(whole,), original=original)
        prompt = self._prompt(before, self._text.text(doc, where))
        if kind == "loglikelihood":
            return self._likely(row, prompt, part)
        requests = tuple(self._generations(prompt))
        return Item(part, row.number, row.id, doc, requests, targets=self._answers(doc, where))

    def _likely(self, row: Row, prompt: Prompt, part: str) -> Item:
        target = self._target.text(row.doc, row.where)
        asked = Likelihood(prompt, target)
        if self.config.scored == "apart":
            before = prompt.text + self.config.target_delimiter
            asked = Apart(Prompt(before), target, (before.strip(), before + target))
        return Item(part, row.number, row.id, row.doc, (asked,), targets=(target,))

    def _generations(self, prompt: Prompt) -> Iterator[Generation]:
        """All texts of an item: as many for each budget as the task draws."""
        settings, budget = self.config.generation_kwargs, self.config.budget
        seed = self._seed if settings.do_sample else 0  # of no account, and so no part of the request
        ending = Ending(budget.cue, budget.answer_tokens) if budget.tokens and budget.cue else None
        for most in budget.tokens or (settings.max_gen_toks,):
            cut = settings.model_copy(update={"max_gen_toks": most})
            yield from (Generation(prompt, cut, draw, seed, ending) for draw in range(self.config.repeats))

    def _choosing(self, row: Row, before: list[tuple[str, str, str]], part: str) -> Item:
        where, doc = row.where, row.doc
        choices = self._choices(doc, where)
        assert choices is not None
        delimiter = "" if self.chat else self.config.target_delimiter
        if self.config.multiple_inputs:
            follows = delimiter + self._target.text(doc, where)
            asked = [Likelihood(self._prompt(before, choice), follows) for choice in choices]
            right = self._right(self._text.value(doc, where), choices, where)
        else:
            prompt = self._prompt(before, self._text.text(doc, where))
            asked = [Likelihood(prompt, delimiter + choice) for choice in choices]
            right = self._right(self._target.value(doc, where), choices, where)
        if self.config.scored == "apart":
            asked = list(_apart(asked, "end" if self.config.multiple_inputs else "start"))
        if any(metric.metric == "acc_mutual_info" for metric in self.config.metric_list):
            asked += [Likelihood(Prompt(), delimiter + choice) for choice in choices]
        return Item(part, row.number, row.id, doc, tuple(asked), tuple(choices), right)

    def _choices(self, doc: Doc, where: str) -> list[str] | None:
        if self._fixed:
            return [one.text(doc, where) for one in self._fixed]
        if self._choice is None:
            return None
        found = texts(self._choice.value(doc, where))
        if not found or not all(choice.strip() for choice in found):
            raise InputError(
                f"{where}: doc_to_choice of the task {self.config.task} gives no list of texts",
                hint="see docs/evals.md",
            )
        return list(found)

    def _right(self, value: Any, choices: Sequence[str], where: str) -> tuple[int, ...]:
        """Indices of the right choices, given as one, as several, or as the text of a choice."""
        several = list(value) if isinstance(value, list | tuple) else [value]
        right = [choices.index(one) if isinstance(one, str) and one in choices else one for one in several]
        for one in right:
            if not isinstance(one, int) or not 0 <= one < len(choices):
                raise InputError(
                    f"{where}: the right answer of the task {self.config.task} is {one!r}, "
                    f"but there are {len(choices)} choices",
                    hint="doc_to_target gives the index of the right choice, from 0, or its text",
                )
        return tuple(map(int, right))

    def _answers(self, doc: Doc, where: str) -> tuple[str, ...]:
        """Right answers of a generation."""
        if not self._target.source:
            return ()
        choices = self._choices(doc, where)
        value = self._target.value(doc, where) if choices else self._target.raw(doc, where)
        if choices:
            return tuple(choices[index] for index in self._right(value, choices, where))
        return tuple(map(str, value)) if isinstance(value, list | tuple) else (str(value),)

    def _before(self, doc: Doc, shots: Sequence[Doc], where: str) -> list[tuple[str, str, str]]:
        """(role, text, what stands behind it in plain text) of the description and the examples."""
        turns: list[tuple[str, str, str]] = []
        if self.config.description and (told := self._description.text(doc, where)):
            turns.append(("system", told, ""))
        for shot in shots:
            question, answer = self._example(shot, f"an example of {where}")
            turns.append(("user", question, self.config.target_delimiter if answer else ""))
            if answer:
                turns.append(("assistant", answer, self.config.fewshot_delimiter))
        return turns

    def _example(self, shot: Doc, where: str) -> tuple[str, str]:
        """Question and answer of an example."""
        if self.config.output_type == "generate_until":
            answers = self._answers(shot, where)
            return self._text.text(shot, where), answers[0] if answers else ""
        choices = self._choices(shot, where)
        if choices is None:
            return self._text.text(shot, where), self._target.text(shot, where)
        if self.config.multiple_inputs:
            right = self._right(self._text.value(shot, where), choices, where)
            return choices[right[0]], self._target.text(shot, where)
        right = self._right(self._target.value(shot, where), choices, where)
        return self._text.text(shot, where), choices[right[0]]

    def _prompt(self, before: Sequence[tuple[str, str, str]], text: str) -> Prompt:
        if not self.chat:
            return Prompt("".join(said + behind for _, said, behind in before) + text)
        told = [(role, said) for role, said, _ in before if role == "system"]
        asked = "".join(said + behind for role, said, behind in before if role != "system") + text
        return Prompt(chat=(*told, ("user", asked)))
