"""What the assistant says, in a chat whose template does not mark it: found by rendering the chat turn by turn."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from llmctl.config.errors import InputError

GENERATION = re.compile(r"\{%[-+]?\s*generation\b")

Render = Callable[[int, bool], str]
"""The first n messages as text, with or without the opened turn of the assistant."""


def marks_generation(template: str) -> bool:
    """Whether a template says itself what the assistant says."""
    return GENERATION.search(template) is not None


def spoken_spans(roles: Sequence[str], render: Render, ends: Sequence[str]) -> list[tuple[int, int]]:
    """Where in the whole text each of the assistant's turns begins and ends, in characters.

    A turn begins where the text of the messages before it ends once the assistant's turn is opened: that is what a
    model is given when it is to answer. It ends behind the last string of `ends` in it, so that what a template puts
    between turns is not learned; where there is none, with the text of the messages up to it.

    Args:
        roles: of the messages.
        render: the template.
        ends: special strings that end a turn.

    Raises:
        InputError: the text of some messages is not the beginning of the text of more of them, so that what would be
            learned is not what will be asked.
    """
    whole = render(len(roles), False)
    spans = []
    for number, role in enumerate(roles):
        if role != "assistant":
            continue
        if number == 0:
            raise InputError(
                "the assistant speaks first, where the chat template opens no turn",
                hint="begin with the user, or put {% generation %} around the answers in chat_template.jinja",
            )
        opened, said = render(number, True), render(number + 1, False)
        if not (said.startswith(opened) and whole.startswith(said)):
            raise InputError(
                f"the chat template renders what comes before messages[{number}] otherwise once more follows",
                hint="put {% generation %} around the answers in chat_template.jinja",
            )
        found = [at + len(mark) for mark in ends if (at := said.rfind(mark, len(opened))) >= 0]
        end = max(found, default=len(said))
        spans.append((len(opened), end))
    return spans


def enclosed(text: str, spans: Sequence[tuple[int, int]], opening: str, closing: str) -> str:
    """`text` with marks around its spans, which are in order and apart."""
    pieces, at = [], 0
    for begin, end in spans:
        pieces += [text[at:begin], opening, text[begin:end], closing]
        at = end
    return "".join([*pieces, text[at:]])
