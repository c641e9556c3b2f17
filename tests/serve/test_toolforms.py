"""What an answer with calls may look like, token by token."""

import json
from typing import Any

import pytest

from llmctl.inference.constraint import Forms
from llmctl.serve.toolforms import tool_form
from llmctl.serve.toolmodels import Tool, ToolChoice
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.tokens.tools import HERMES, LLAMA3, Convention
from tests.evals.tiny import tiny_tokenizer

MARKED = Convention("<|im_start|>", "</call>", "\n", "arguments")  # whose mark is a special token
SCHEMA = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/n"}},
    "required": ["a"],
    "$defs": {"n": {"enum": [1, 2]}},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.open(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def tool(name: str, *, strict: bool) -> Tool:
    return Tool.model_validate(
        {"type": "function", "function": {"name": name, "parameters": SCHEMA, "strict": strict or None}}
    )


def call(convention: Convention, name: str = "f", value: Any = 1) -> str:
    said = json.dumps({"name": name, convention.arguments: {"a": value}})
    return f"{convention.begin}{convention.space}{said}{convention.space}{convention.end}"


def fits(tokenizer: Tokenizer, text: str, convention: Convention, mode: Any = "auto", **more: Any) -> bool:
    """Whether `text` is a whole answer of the form."""
    tools = [tool("f", strict=more.pop("strict", True)), tool("g", strict=False)]
    options = {"parallel": True, "answer": None, **more}
    form = tool_form(tokenizer, convention, tools, ToolChoice(mode), **options)
    assert form is not None
    matcher = Forms(tokenizer).matcher(form)
    special = tokenizer.special.get(convention.begin)
    ids: list[int] = []
    for number, part in enumerate(text.split(convention.begin) if special is not None else [text]):
        ids += [special] * (number > 0 and special is not None) + tokenizer.encode(part)
    for index in [*ids, tokenizer.eos_id]:
        if not matcher.allowed()[index]:
            return False
        matcher.accept(index)
    return True


@pytest.mark.parametrize("convention", [HERMES, LLAMA3, MARKED])
def test_what_must_be_called(tokenizer: Tokenizer, convention: Convention) -> None:
    between = convention.space or "; "
    one, other = call(convention), call(convention, "g", 2)
    assert fits(tokenizer, one, convention, "required")
    assert fits(tokenizer, one + between + other, convention, "required")
    assert not fits(tokenizer, one + between + other, convention, "required", parallel=False)
    assert not fits(tokenizer, "text", convention, "required")
    assert not fits(tokenizer, call(convention, "h"), convention, "required")
    assert not fits(tokenizer, call(convention, "f", 3), convention, "required")
    assert not fits(tokenizer, call(convention, "g", 3), convention, "required")


@pytest.mark.parametrize("convention", [HERMES, LLAMA3, MARKED])
def test_what_may_be_called(tokenizer: Tokenizer, convention: Convention) -> None:
    assert fits(tokenizer, "", convention)
    assert fits(tokenizer, "some text, a <tool", convention)
    assert fits(tokenizer, call(convention), convention)
    assert not fits(tokenizer, call(convention, "f", 3), convention)
    assert fits(tokenizer, call(convention, "g", 3), convention)  # it is not strict
    assert not fits(tokenizer, call(convention, "h"), convention)
    if convention.begin:
        assert fits(tokenizer, f"I call: {call(convention)}\n{call(convention, 'g')} and so on", convention)
        assert not fits(tokenizer, f"I call: {call(convention)}\n{call(convention)}", convention, parallel=False)


@pytest.mark.parametrize("convention", [HERMES, MARKED])
def test_an_answer_of_a_schema_or_calls(tokenizer: Tokenizer, convention: Convention) -> None:
    answer = {"const": {"ok": True}}
    assert fits(tokenizer, '{"ok": true}', convention, answer=answer)
    assert fits(tokenizer, call(convention), convention, answer=answer)
    assert not fits(tokenizer, "text", convention, answer=answer)


def test_nothing_is_bound_where_nobody_asked(tokenizer: Tokenizer) -> None:
    free = tool_form(tokenizer, HERMES, [tool("f", strict=False)], ToolChoice("auto"), parallel=True, answer=None)
    assert free is None
