"""Multiple-choice questions: read with every fault named, and turned into what the model scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmctl.config.errors import InputError
from llmctl.data.tables import read_rows
from llmctl.evals.scoring import split_pair
from llmctl.inference.score import Pair
from llmctl.store.artifact import Input
from llmctl.tokens.chat import render_prompt, render_prompt_text, render_training
from llmctl.tokens.tokenizer import Tokenizer


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


@dataclass(frozen=True)
class Asked:
    """A question as the model gets it.

    Attributes:
        question: as in the data.
        prompt: the text before each choice, with the chat template where there is one.
        choices: the texts whose likelihood is measured.
        pairs: (context ids, continuation ids) of each choice.
    """

    question: Question
    prompt: str
    choices: tuple[str, ...]
    pairs: list[Pair]


def ask(question: Question, tokenizer: Tokenizer, context: int, *, delimiter: str, chat: bool) -> Asked:
    """Put one question, as plain text or through the chat template.

    Raises:
        InputError: it cannot be scored within the model's context.
    """
    if not chat:
        pairs = plain_pairs(question, tokenizer, delimiter, context)
        return Asked(question, question.prompt, question.choices, pairs)
    prompt = render_prompt_text(tokenizer, _turns(question))
    choices = tuple(choice.strip() for choice in question.choices)
    return Asked(question, prompt, choices, chat_pairs(question, tokenizer, context))


def _turns(question: Question) -> list[dict[str, str]]:
    return [{"role": "user", "content": question.question}]


def plain_pairs(question: Question, tokenizer: Tokenizer, delimiter: str, context: int) -> list[Pair]:
    """(context ids, continuation ids) of each choice as plain text: BOS, the prompt, the delimiter, the choice.

    Args:
        question: what to score.
        tokenizer: the checkpoint's.
        delimiter: text between the prompt and a choice, unless white space stands there already.
        context: the model's longest row in tokens.
    """
    pairs: list[Pair] = []
    for choice in question.choices:
        is_apart = question.prompt[-1:].isspace() or choice[:1].isspace()
        before, after = split_pair(question.prompt, choice if is_apart else delimiter + choice, tokenizer.encode)
        pairs.append(([tokenizer.bos_id, *before], after))
    return _fitting(pairs, question, context)


def chat_pairs(question: Question, tokenizer: Tokenizer, context: int) -> list[Pair]:
    """(context ids, continuation ids) of each choice as an assistant's answer, without the end-of-turn id.

    The ids of an answer are those that training on it would have learned (`render_training`). White space around a
    choice separates it from a plain prompt and is no part of an answer.
    """
    asked = _turns(question)
    before = render_prompt(tokenizer, asked)
    ends = set(tokenizer.stop_ids)
    pairs: list[Pair] = []
    for choice in question.choices:
        ids, learned = render_training(tokenizer, [*asked, {"role": "assistant", "content": choice.strip()}])
        answer = [token for token, is_learned in zip(ids, learned, strict=True) if is_learned]
        pairs.append((before, [token for token in answer if token not in ends]))
    return _fitting(pairs, question, context)


def _fitting(pairs: list[Pair], question: Question, context: int) -> list[Pair]:
    """`pairs`, after checking that each can be scored in one row of `context` + 1 tokens."""
    for number, (before, after) in enumerate(pairs):
        if not after:
            raise InputError(
                f"question {question.id}: choice {number} adds no token to its prompt",
                hint="let the delimiter or the choice begin with a space",
            )
        # The last token is predicted, never read: hence the one more.
        tokens = len(before) + len(after)
        if tokens > context + 1:
            raise InputError(
                f"question {question.id}: choice {number} needs {tokens} tokens, the model reads {context}",
                hint="shorten the question, or train with a longer model.context",
            )
    return pairs
