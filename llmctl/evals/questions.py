"""Multiple-choice questions: read with every fault named, and turned into what the model scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmctl.config.errors import InputError
from llmctl.config.tasks import TaskConfig
from llmctl.data.tables import read_rows
from llmctl.evals.items import Item
from llmctl.evals.requests import Likelihood, Prompt
from llmctl.store.artifact import Input


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: as in the data; the start of the file's digest and the line where it has none.
        prompt: text that the choices continue.
        choices: at least two texts, none empty.
        answer: index of the right choice.
        question: what a user would ask in a chat; the prompt where the data has no column `question`.
    """

    id: str
    prompt: str
    choices: tuple[str, ...]
    answer: int
    question: str


def read_questions(given: Input) -> list[Question]:
    """All questions of a `prompts` artifact or file, in order.

    Raises:
        InputError: naming the question with an answer out of range, fewer than two choices or an empty one;
            or where there is no question at all.
    """
    questions = [_checked(row, given.ref) for row in read_rows(given)]
    if not questions:
        raise InputError(f"{given.ref} holds no question", hint='give lines of {"prompt", "choices", "answer"}')
    return questions


def _checked(row: dict[str, Any], where: str) -> Question:
    choices, answer, name = tuple(row["choices"]), row["answer"], f"{where}: question {row['id']}"
    if len(choices) < 2:
        raise InputError(f"{name} has {len(choices)} choices", hint="give at least two")
    if not all(choice.strip() for choice in choices):
        raise InputError(f"{name} has an empty choice", hint="give every choice a text")
    if not 0 <= answer < len(choices):
        raise InputError(
            f"{name} has answer {answer}, but {len(choices)} choices",
            hint="answer is the index of the right choice, from 0",
        )
    return Question(row["id"], row["prompt"], choices, answer, row.get("question") or row["prompt"])


CHOICES = TaskConfig.model_validate(
    {
        "task": "choices",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": ["acc", "acc_norm"],
    }
)
"""Questions that are given by themselves, as a task among others."""


def item_of(question: Question, number: int, *, delimiter: str, chat: bool) -> Item:
    """A question as it is asked, as plain text or in a chat.

    Args:
        question: what to ask.
        number: its place in the data.
        delimiter: plain: text between the prompt and a choice, unless white space stands there already.
        chat: whether to ask through the chat template. White space around a choice separates it from a plain prompt
            and is no part of an answer.
    """
    if chat:
        prompt = Prompt(chat=(("user", question.question),))
        asked = [Likelihood(prompt, choice.strip()) for choice in question.choices]
    else:
        prompt = Prompt(question.prompt)
        asked = [Likelihood(prompt, _joined(question.prompt, choice, delimiter)) for choice in question.choices]
    choices = tuple(choice.strip() for choice in question.choices)
    doc = {"prompt": question.prompt, "choices": list(question.choices), "answer": question.answer}
    return Item("", number, question.id, doc, tuple(asked), choices, (question.answer,))


def _joined(prompt: str, choice: str, delimiter: str) -> str:
    return choice if prompt[-1:].isspace() or choice[:1].isspace() else delimiter + choice
