"""The form that an answer with calls must have, as a grammar in llguidance's dialect of Lark."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from llmctl.inference.constraint import JSON_LAYOUT
from llmctl.inference.request import Constraint
from llmctl.serve.toolmodels import Tool, ToolChoice
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.tokens.tools import Convention

ANY = r"(.|\n)*"
Answer = dict[str, Any] | bool | None
JSON_RULES = {"x-guidance": JSON_LAYOUT}


def tool_form(
    tokenizer: Tokenizer,
    convention: Convention,
    tools: Sequence[Tool],
    choice: ToolChoice,
    *,
    parallel: bool,
    answer: Answer,
) -> Constraint | None:
    """The form of an answer that may or must call some of `tools`; None where it is free.

    Args:
        tokenizer: the model's, which may have marks of calls as special tokens.
        convention: how the model writes calls.
        tools: those that may be called.
        choice: whether it must.
        parallel: whether it may call more than once.
        answer: JSON Schema of an answer that calls nothing; None for any text, as it must be where nothing encloses
            calls.
    """
    must = choice.mode == "required"
    if not must and parallel and answer is None and not any(tool.function.strict for tool in tools):
        return None
    calls = " | ".join(f"call_{number}" for number in range(len(tools)))
    rules = [
        "%llguidance {}",
        f"call: {calls}",
        *(_call(tokenizer, convention, number, tool, binds=must) for number, tool in enumerate(tools)),
    ]
    several = parallel and not choice.one
    if convention.begin:
        rules += _enclosed(tokenizer, convention, must=must, several=several, answer=answer)
    else:
        rules += _bare(must=must, several=several)
    return Constraint("grammar", "\n".join(rules))


def _call(tokenizer: Tokenizer, convention: Convention, number: int, tool: Tool, *, binds: bool) -> str:
    """The rule of a call behind the mark that begins it. A function that is not strict takes any arguments."""
    schema = tool.arguments if binds or tool.function.strict else {"type": "object"}
    head = f'{convention.space}{{"name": {json.dumps(tool.function.name)}, "{convention.arguments}": '
    tail = [_quoted("}" + convention.space), *_mark(tokenizer, convention.end)]
    return " ".join([f"call_{number}:", _quoted(head), _json(schema), *tail])


def _enclosed(
    tokenizer: Tokenizer, convention: Convention, *, must: bool, several: bool, answer: Answer
) -> Iterator[str]:
    """The rules of an answer whose calls are told by a mark, wherever they stand."""
    (mark,) = _mark(tokenizer, convention.begin)
    calls = f"{mark} call" + (f" ({_quoted(convention.space)} {mark} call)*" if several else "")
    if must:
        yield f"start: {calls}"
    elif answer is not None:
        yield f"start: {calls} | {_json(answer)}"
    elif mark.startswith("<"):  # a special token is in no text
        yield f"start: (TEXT {mark} call)* TEXT" if several else f"start: TEXT ({mark} call)?"
        yield f"TEXT: /{ANY}/"
    else:
        yield "start: (begun call)* TEXT" if several else "start: begun call | TEXT"
        yield f"begun[lazy]: TEXT {mark}"
        yield f"TEXT: /{ANY}/"


def _bare(*, must: bool, several: bool) -> Iterator[str]:
    """The rules of an answer that is calls, or begins like none."""
    calls = 'call ("; " call)*' if several else "call"
    if must:
        yield f"start: {calls}"
    else:
        yield f"start: {calls} | TEXT?"
        yield rf"TEXT: /[^{{\s]{ANY}/"


def _json(schema: dict[str, Any] | bool) -> str:
    return f"%json {json.dumps({**schema, **JSON_RULES} if isinstance(schema, dict) else schema)}"


def _quoted(text: str) -> str:
    """A text in Lark; empty ones are nothing."""
    return json.dumps(text) if text else ""


def _mark(tokenizer: Tokenizer, text: str) -> list[str]:
    """A mark in Lark: the token, where it is one of the special ones."""
    special = tokenizer.special.get(text)
    return [_quoted(text) if special is None else f"<[{special}]>"] if text else []
