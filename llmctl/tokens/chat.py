"""Chats as token ids: the same ids in training, in generation and in other tools.

The template that is stored with a tokenizer is plain Jinja in the dialect of Hugging Face (`{% generation %}`
marks what the assistant says), so `apply_chat_template` of transformers renders it too. Here a message cannot
forge a turn: special strings inside its content are text, whereas other tools would read them as tokens.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from llmctl.config.errors import InputError
from llmctl.tokens.sandbox import compiled, rendered
from llmctl.tokens.spans import enclosed, marks_generation, spoken_spans
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.tokens.tools import knows_tools, spelled_out

if TYPE_CHECKING:  # what only answers never asks for it
    from llmctl.config.train import Learned

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
            {{- message.content + '<|im_end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

ROLES = ("system", "user", "assistant")
Message = Mapping[str, Any]

# Marks in rendered text begin with a private-use character; content's own are doubled with a letter, so they are
# never taken for ours: M"m" is M itself, M"." is nothing (it breaks a special string), M"(" and M")" enclose
# what the assistant says.
MARK = "\U0010fffd"
LITERAL, BREAK, OPEN, CLOSE = (MARK + sign for sign in "m.()")


class Generation(Extension):
    """The block `{% generation %}…{% endgeneration %}`: what the assistant says, and nothing else."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """Wrap the block's body in a call that marks both its ends."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return f"{OPEN}{caller()}{CLOSE}"


def render_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[int]:
    """Ids of a chat that ends with the opened turn of the assistant, or without it.

    Args:
        tokenizer: with a chat template.
        messages: role and content each; also `tool_calls` of the assistant, their arguments as objects, and the
            role `tool`.
        add_generation_prompt: whether the assistant's turn is opened.
        tools: functions that the assistant may call, `{"type": "function", "function": {…}}` each.

    Raises:
        InputError: malformed messages, or a template that fails on them.
    """
    text = _rendered(
        tokenizer, messages, add_generation_prompt=add_generation_prompt, tools=tools, roles=(*ROLES, "tool")
    )
    return _encoded(tokenizer, text)[0]


def render_prompt_text(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """The text whose ids `render_prompt` gives, special tokens spelled out; to be read, not to be encoded.

    Raises:
        InputError: malformed messages, or a template that fails on them.
    """
    rendered = _rendered(tokenizer, messages, add_generation_prompt=True)
    return "".join(_restored(part) for part, _ in _parts(tokenizer, rendered))


def render_tool_turn(tokenizer: Tokenizer, outputs: Sequence[str]) -> list[int]:
    """Ids that stand between the id that ends the assistant's turn and what it says when it has read `outputs`.

    They follow whatever ids the turn has, which stay as they were drawn.

    Raises:
        InputError: the template ends no turn with a special token, takes no tools' turns, or writes what was said
            another way once they come.
    """
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "."}]
    told = [*said, *({"role": "tool", "content": text, "tool_call_id": "0"} for text in outputs)]
    known = (*ROLES, "tool")
    before = _rendered(tokenizer, said, add_generation_prompt=False, roles=known)
    whole = _rendered(tokenizer, told, add_generation_prompt=True, roles=known)
    ends = [text for text, index in tokenizer.special.items() if index in tokenizer.stop_ids]
    end = max(before.rfind(text) + len(text) if text in before else 0 for text in ends)
    if not end:
        raise InputError(
            "the chat template ends no turn with a special token that ends an answer",
            hint="a tool's output could not be told from the answer before it; take another chat template",
        )
    if not whole.startswith(before[:end]):
        raise InputError(
            "the chat template writes a turn another way once a tool's output follows",
            hint="what was drawn would not be what the template gives; take another chat template",
        )
    return _encoded(tokenizer, whole[end:])[0]


def render_training(
    tokenizer: Tokenizer, messages: Sequence[Message], learn: Learned = "assistant"
) -> tuple[list[int], list[bool]]:
    """Ids of a whole chat, and for each whether it is to be learned.

    True on what the assistant says and on the token after it that ends the turn, False everywhere else; with
    `learn="last"` its last turn alone, with `"all"` True everywhere. The ids up
    to an assistant's turn are exactly those of `render_prompt` of the messages before it. Where the template marks
    nothing with `{% generation %}`, as few published ones do, the turns are found by `spoken_spans`.

    Raises:
        InputError: malformed messages, no turn of the assistant, or a template that fails or marks nothing.
    """
    text = _rendered(tokenizer, messages, add_generation_prompt=False)
    if not marks_generation(tokenizer.chat_template):
        text = enclosed(text, _spans(tokenizer, messages), OPEN, CLOSE)
    ids, learned = _encoded(tokenizer, text)
    if not any(message["role"] == "assistant" for message in messages):
        raise InputError("messages hold no assistant turn: there is nothing to learn", hint="add the answer")
    if not any(learned):
        raise InputError("the chat template marks nothing to learn", hint="put {% generation %} around the answers")
    if learn == "all":
        return ids, [True] * len(ids)
    if learn == "last":
        last = max(place for place, message in enumerate(messages) if message["role"] == "assistant")
        before = len(render_prompt(tokenizer, messages[:last]))
        learned = [False] * before + learned[before:]
    return ids, learned


def render_answer(tokenizer: Tokenizer, messages: Sequence[Message], answer: str) -> list[int]:
    """Ids of a chat with the assistant's answer, up to the one that ends its turn: what a reward model reads.

    Raises:
        InputError: as `render_training`.
    """
    ids, spoken = render_training(tokenizer, [*messages, {"role": "assistant", "content": answer}])
    return ids[: max(place for place, said in enumerate(spoken) if said) + 1]


def _spans(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[tuple[int, int]]:
    """Where the assistant speaks in the rendered chat."""

    def render(count: int, opened: bool) -> str:
        return _rendered(tokenizer, messages[:count], add_generation_prompt=opened)

    ends = [text for text, index in tokenizer.special.items() if index in tokenizer.stop_ids]
    return spoken_spans([message["role"] for message in messages], render, ends)


def check_messages(messages: Any, roles: Sequence[str] = ROLES) -> None:
    """Raise an `InputError` that names the message and the fault, if there is one."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise InputError(
            f"messages must be a list, got {type(messages).__name__}", hint='give [{"role", "content"}, …]'
        )
    if not messages:
        raise InputError("messages are empty", hint="give at least one message")
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping):
            raise InputError(f"{where} must be an object, got {type(message).__name__}", hint="give role and content")
        role, content = message.get("role"), message.get("content")
        if role not in roles:
            fault = "has no role" if role is None else f"has the unknown role {role!r}"
            raise InputError(f"{where} {fault}", hint=f"known: {', '.join(roles)}")
        if not isinstance(content, str):
            fault = "has no content" if content is None else f"has content of type {type(content).__name__}"
            raise InputError(f"{where} {fault}", hint="content must be a string")


def _rendered(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] = (),
    roles: Sequence[str] = ROLES,
) -> str:
    """The template's text, with special strings of the content broken and our marks in it."""
    check_messages(messages, roles)
    template = tokenizer.chat_template
    if not template:
        raise InputError("the tokenizer has no chat template", hint="put one into chat_template.jinja beside it")
    try:
        turns = [_neutralised(tokenizer, _turn(message)) for message in messages]
        functions = _neutralised(tokenizer, list(tools))
        known = knows_tools(template)
        return rendered(
            compiled(template, (Generation,)),
            messages=turns if known else spelled_out(turns, functions),
            add_generation_prompt=add_generation_prompt,
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
            **({"tools": functions or None} if known else {}),  # None, as transformers says it
        )
    except (jinja2.TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"the chat template fails: {error}", hint="check chat_template.jinja") from error


def _turn(message: Message) -> dict[str, Any]:
    """What a template may see of a message: a key that is not there is not defined."""
    return {
        key: message[key] for key in ("role", "content", "tool_calls", "tool_call_id") if message.get(key) is not None
    }


@functools.lru_cache(maxsize=16)
def _special(special: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the special strings, the longest that fits."""
    return re.compile("|".join(re.escape(text) for text in sorted(special, key=len, reverse=True) if text) or "(?!)")


@functools.lru_cache(maxsize=16)
def _cut(special: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"({_special(special).pattern}|{re.escape(OPEN)}|{re.escape(CLOSE)})")


def _neutralised(tokenizer: Tokenizer, value: Any) -> Any:
    """`value`, any JSON, with its texts' own marks made literal and their special strings broken."""
    if isinstance(value, list | tuple):
        return [_neutralised(tokenizer, item) for item in value]
    if isinstance(value, Mapping):
        return {_neutralised(tokenizer, key): _neutralised(tokenizer, item) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    pattern = _special(tuple(tokenizer.special))
    return pattern.sub(lambda match: match[0][0] + BREAK + match[0][1:], value.replace(MARK, LITERAL))


def _restored(text: str) -> str:
    """The inverse of `_neutralised`."""
    return text.replace(BREAK, "").replace(LITERAL, MARK)


def _parts(tokenizer: Tokenizer, rendered: str) -> Iterator[tuple[str, bool]]:
    """Specials and the texts between them in order, each with whether the assistant says it."""
    learned = False
    for part in _cut(tuple(tokenizer.special)).split(rendered):
        if part in (OPEN, CLOSE):
            learned = part == OPEN
        elif part:
            yield part, learned


def _encoded(tokenizer: Tokenizer, rendered: str) -> tuple[list[int], list[bool]]:
    """Ids and mask. Text is cut where the assistant begins to speak, as it is in generation."""
    ids: list[int] = []
    mask: list[bool] = []
    for part, learned in _parts(tokenizer, rendered):
        special = tokenizer.special.get(part)
        new = [special] if special is not None else tokenizer.encode(_restored(part))
        ids += new
        mask += [learned] * len(new)
    return ids, mask
