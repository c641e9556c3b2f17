"""Calls are found in the text of an answer, wherever it is cut."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.tokens.toolcalls import Argued, Begun, CallParser, Said
from llmctl.tokens.tools import HERMES, LLAMA3, Convention

Read = tuple[str, list[tuple[str, str]]]
NAMES = ("find", "add")
TWO = (
    'I look.\n<tool_call>\n{"name": "find", "arguments": {}}\n</tool_call>\n'
    '<tool_call>{"name":"add","arguments":{"a":[1,{"b":"\\"<tool_call>"}]}}</tool_call>\n'
)


def read(convention: Convention, parts: list[str]) -> Read:
    """Text and calls, put together from the pieces; and their order is checked."""
    parser = CallParser(convention, NAMES)
    said, calls, ids = "", [], set()
    for piece in [piece for part in parts for piece in parser.feed(part)] + parser.finish():
        match piece:
            case Said(text):
                said += text
            case Begun(index, called, name):
                assert index == len(calls)
                ids.add(called)
                calls.append((name, ""))
            case Argued(index, text):
                assert index == len(calls) - 1
                calls[-1] = (calls[-1][0], calls[-1][1] + text)
    assert parser.calls == len(calls) == len(ids)
    return said, calls


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("nothing to call", "nothing to call", []),
        (' {"a": 1} ', ' {"a": 1} ', []),
        ('<tool_call>\n{"name": "find", "arguments": {"a": "}"}}\n</tool_call>', "", [("find", '{"a": "}"}')]),
        (
            TWO,
            "I look.",
            [("find", "{}"), ("add", '{"a":[1,{"b":"\\"<tool_call>"}]}')],
        ),
        ('<tool_call>{"arguments": {"a": 1}, "name": "x"}</tool_call>', "", [("x", '{"a": 1}')]),
        ('<tool_call>{"name": "x", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("x", '{"a": 1}')]),
        ('<tool_call>{"name": "x"}</tool_call> done', "done", [("x", "{}")]),
        ('<tool_call>{"name": "x", "parameters": {"a": 1}, "id": {"b": 2}}</tool_call>', "", [("x", '{"a": 1}')]),
        ('<tool_call>{"name": "x", "arguments": {"a": 1}} and so on', "and so on", [("x", '{"a": 1}')]),
        ('<tool_call>{"name": "x", "arguments": {"a": 1</tool_call>b', "b", [("x", '{"a": 1')]),
        ('<tool_call>{"name": "x", "arguments": {"a": "cut', "", [("x", '{"a": "cut')]),
        ('a <tool_call>{"name": "x', 'a <tool_call>{"name": "x', []),
        ("<tool_call> no <tool_call>[1]</tool_call>", "<tool_call> no <tool_call>[1]</tool_call>", []),
        ('<tool_call>{"nothing": 1}</tool_call>', '<tool_call>{"nothing": 1}</tool_call>', []),
        (
            '<tool_call>no\n<tool_call>{"name": "x", "arguments": {}}</tool_call>',
            "<tool_call>no",
            [("x", "{}")],
        ),
        ("a < b, <tool", "a < b, <tool", []),
        ("ends in space \n", "ends in space \n", []),
    ],
)
def test_hermes(text: str, said: str, calls: list[tuple[str, str]]) -> None:
    assert read(HERMES, [text]) == (said, calls)
    assert read(HERMES, list(text)) == (said, calls)


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("It is { odd }.", "It is { odd }.", []),
        ('{"name": "find", "parameters": {"a": 1}}', "", [("find", '{"a": 1}')]),
        ('\n{"type": "function", "name": "find", "parameters": {"a": {}}}', "", [("find", '{"a": {}}')]),
        (
            '{"name": "find", "parameters": {}}; {"name": "add", "parameters": {"a": 1}}',
            "",
            [("find", "{}"), ("add", '{"a": 1}')],
        ),
        ('{"name": "Ann", "parameters": {}}', '{"name": "Ann", "parameters": {}}', []),
        ('{"find": 1} {"name": "find", "parameters": {}}', '{"find": 1} {"name": "find", "parameters": {}}', []),
        ('{"parameters": {"a": 1}, "name": "add"} there', "there", [("add", '{"a": 1}')]),
        ('{"name": "find", "param', '{"name": "find", "param', []),
        ('{"name": "find", "parameters": {}}; and', "; and", [("find", "{}")]),
    ],
)
def test_llama3(text: str, said: str, calls: list[tuple[str, str]]) -> None:
    assert read(LLAMA3, [text]) == (said, calls)
    assert read(LLAMA3, list(text)) == (said, calls)


SHREDS = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        "{",
        "}",
        '"',
        "\\",
        '{"name": "find", ',
        '"arguments": ',
        "{}",
        " ",
        "\n",
        ";",
        "a",
        "<",
    ]
)


@given(st.lists(SHREDS, max_size=12), st.lists(st.integers(0, 90), max_size=6), st.sampled_from([HERMES, LLAMA3]))
def test_where_the_text_is_cut_changes_nothing(shreds: list[str], cuts: list[int], convention: Convention) -> None:
    text = "".join(shreds)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    parts = [text[start:end] for start, end in itertools.pairwise(places)]
    whole = read(convention, [text])
    assert read(convention, parts) == whole
    assert read(convention, list(text)) == whole


@given(
    st.lists(
        st.tuples(
            st.sampled_from(NAMES),
            st.dictionaries(
                st.text(max_size=5), st.recursive(st.integers() | st.text(max_size=8), st.lists, max_leaves=4)
            ),
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([(HERMES, "\n"), (LLAMA3, "; ")]),
)
def test_calls_come_back(calls: list[tuple[str, dict]], how: tuple[Convention, str]) -> None:
    convention, between = how
    written = [
        convention.begin
        + json.dumps({"name": name, convention.arguments: arguments}, ensure_ascii=False)
        + convention.end
        for name, arguments in calls
    ]
    said, found = read(convention, [between.join(written)])
    assert said == ""
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls
