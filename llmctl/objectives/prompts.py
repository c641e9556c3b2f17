"""Prompts to be answered, as token ids: what the policy is asked, and what its answers are judged by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmctl.config.errors import InputError
from llmctl.data.split import is_heldout
from llmctl.objectives.asked import Question
from llmctl.objectives.targets import refuse_overlong
from llmctl.tokens.chat import render_prompt
from llmctl.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        id: as in the data; the start of the file's digest and the line where it has none.
        document: on which the held-out rule acts; the id where the data has none.
        text: to be read.
        ids: what the policy continues.
        answer: what is wanted, where the data says so.
        fields: the other columns of its row, for rewards.
    """

    id: str
    document: str
    text: str
    ids: tuple[int, ...]
    answer: str | None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompts:
    """Both sides of a source.

    Attributes:
        kept: to learn on, at least one.
        held: for the held-out reward.
        overlong: what is wrong with those that leave no room for an answer.
    """

    kept: list[Prompt]
    held: list[Prompt]
    overlong: list[str]


def read_prompts(
    questions: Iterable[Question],
    source: str,
    tokenizer: Tokenizer,
    *,
    chat: bool,
    longest: int,
    fraction: float,
    overlong: str,
    tools: Sequence[Mapping[str, Any]] = (),
) -> Prompts:
    """Every prompt as ids.

    Args:
        questions: what is asked.
        source: where they come from, for messages.
        tokenizer: the policy's.
        chat: put prompts through the chat template, else as text behind BOS.
        longest: most tokens of a prompt.
        fraction: share to hold out.
        overlong: `error`, or `drop` prompts that do not fit.
        tools: that the policy is told of, as chat templates take them.

    Raises:
        InputError: a malformed row; one that does not fit; or none is left to learn on.
    """
    fitting: list[Prompt] = []
    too_long: list[str] = []
    for number, question in enumerate(questions, start=1):
        where = f"{source}: prompt {number}"
        prompt = _prompt(question, tokenizer, where, chat=chat, tools=tools)
        if len(prompt.ids) > longest:
            too_long.append(f"{where} ({prompt.id}) has {len(prompt.ids)} tokens")
        else:
            fitting.append(prompt)
    if longest < 1:
        raise InputError("max_new_tokens leaves no room for a prompt", hint="lower it, or raise max_tokens")
    refuse_overlong(too_long, overlong, longest)
    kept = [prompt for prompt in fitting if not is_heldout(prompt.document, fraction)]
    held = [prompt for prompt in fitting if is_heldout(prompt.document, fraction)]
    if not kept:
        raise InputError(f"{source} holds no prompt to learn on", hint="see max_tokens and heldout_fraction")
    return Prompts(kept, held, too_long)


def _prompt(
    question: Question, tokenizer: Tokenizer, where: str, *, chat: bool, tools: Sequence[Mapping[str, Any]]
) -> Prompt:
    text = question.text
    if text is None and not chat:
        raise InputError(f"{where} is messages, and the policy takes text", hint="chat=true, or a string")
    try:
        if chat:
            ids = render_prompt(tokenizer, question.messages, tools=tools)
        else:
            ids = [*tokenizer.text_start, *tokenizer.encode(str(text))]
    except InputError as error:
        raise InputError(f"{where}: {error.what}", hint=error.hint) from None
    return Prompt(question.id, question.document, question.spoken, tuple(ids), question.answer, question.fields)
