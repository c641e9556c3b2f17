"""Functions that the model may or must call, by the stock client and against OpenAI's schema."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.serve.conftest import MODEL, Check, Running, Start
from tests.serve.test_limits import refused
from tests.serve.test_schema import events

FIND = {
    "type": "object",
    "properties": {"place": {"enum": ["Rome", "Köln"]}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["place", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "find", "description": "the weather", "parameters": FIND}},
    {"type": "function", "function": {"name": "stop-now", "description": "ends it <|im_end|>"}},
]
SCHEMAS = {"find": FIND, "stop-now": {"type": "object", "maxProperties": 0}}
NAMED = {"type": "function", "function": {"name": "find"}}
MESSAGES: list[Any] = [{"role": "user", "content": "the weather"}]
CHAT: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "max_tokens": 90, "tools": TOOLS}


@pytest.fixture(scope="module")
def server(start: Start, roomy: Path) -> Iterator[Running]:
    with start(roomy) as running:
        yield running


@pytest.fixture(scope="module", params=["hermes", "llama3"])
def either(request: pytest.FixtureRequest, start: Start, roomy: Path) -> Iterator[Running]:
    with start(roomy, tool_format=request.param) as running:
        yield running


def checked(calls: Any, *, cut: bool) -> None:
    """Every call names a tool, and is JSON of its schema but for the last one of an answer that was cut."""
    assert len({call["id"] for call in calls}) == len(calls)
    for number, call in enumerate(calls):
        assert call["type"] == "function"
        if not (cut and number == len(calls) - 1):
            jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMAS[call["function"]["name"]])


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_that_must_come_is_one_of_the_schema(either: Running, conforms: Check, choice: Any) -> None:
    body = either.post("/v1/chat/completions", json={**CHAT, "tool_choice": choice, "n": 6, "seed": 1}).json()
    conforms("CreateChatCompletionResponse", body)
    whole = 0
    for answer in body["choices"]:
        message, cut = answer["message"], answer["finish_reason"] == "length"
        assert answer["finish_reason"] in ("tool_calls", "length")
        checked(message.get("tool_calls", ()), cut=cut)
        if not cut:
            whole += 1
            assert message["content"] is None
            assert message["tool_calls"]
            if choice == NAMED:
                assert [call["function"]["name"] for call in message["tool_calls"]] == ["find"]
    assert whole


@pytest.mark.parametrize("choice", ["auto", "required", NAMED])
def test_streamed_calls_add_up_to_the_whole_ones(either: Running, conforms: Check, choice: Any) -> None:
    asked = {**CHAT, "tool_choice": choice, "n": 3, "seed": 2, "logprobs": True}
    whole = either.post("/v1/chat/completions", json=asked).json()["choices"]
    chunks = events(either.post("/v1/chat/completions", json={**asked, "stream": True}))
    contents, reasons, scores = ["", "", ""], [None] * 3, [0, 0, 0]
    calls: list[list[dict[str, Any]]] = [[], [], []]
    for chunk in chunks:
        conforms("CreateChatCompletionStreamResponse", chunk)
        (part,) = chunk["choices"]
        at = part["index"]
        contents[at] += part["delta"].get("content") or ""
        reasons[at] = part["finish_reason"] or reasons[at]
        scores[at] += len((part.get("logprobs") or {}).get("content") or ())
        for call in part["delta"].get("tool_calls", ()):
            if call["index"] == len(calls[at]):  # id, kind and name come first, arguments in pieces
                assert set(call) == {"index", "id", "type", "function"}
                assert call["function"]["arguments"] == ""
                calls[at].append(call["function"])
            else:
                assert call["index"] == len(calls[at]) - 1
                assert set(call) == {"index", "function"}
                calls[at][-1]["arguments"] += call["function"]["arguments"]
    assert contents == [one["message"]["content"] or "" for one in whole]
    assert calls == [[call["function"] for call in one["message"].get("tool_calls", ())] for one in whole]
    assert reasons == [one["finish_reason"] for one in whole]
    assert scores == [len(one["logprobs"]["content"]) for one in whole]


def test_one_call_where_no_more_are_wanted(server: Running) -> None:
    asked = {**CHAT, "tool_choice": "required", "parallel_tool_calls": False, "n": 8, "seed": 3}
    for answer in server.post("/v1/chat/completions", json=asked).json()["choices"]:
        assert answer["finish_reason"] == "length" or len(answer["message"]["tool_calls"]) == 1


def test_a_cut_call_says_so_and_loses_nothing(server: Running) -> None:
    asked = {**CHAT, "tool_choice": NAMED, "max_tokens": 6, "n": 4}
    for answer in server.post("/v1/chat/completions", json=asked).json()["choices"]:
        assert answer["finish_reason"] == "length"
        assert "<tool_call>".startswith(answer["message"]["content"][:11])
        assert answer["message"]["content"]


def test_the_stock_client_reads_calls_and_sends_them_back(server: Running) -> None:
    client = server.client()
    with client.chat.completions.stream(
        model=MODEL, messages=MESSAGES, tools=TOOLS, tool_choice=NAMED, max_tokens=90, seed=1
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    results: list[Any] = [{"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    answer = client.chat.completions.create(model=MODEL, messages=[*MESSAGES, message, *results], max_tokens=4)
    assert answer.usage is not None
    spelled = [
        *MESSAGES,
        {
            "role": "assistant",
            "content": '<tool_call>\n{"name": "find", "arguments": '
            + json.dumps(json.loads(call.function.arguments), ensure_ascii=False)
            + "}\n</tool_call>",
        },
        {"role": "user", "content": "<tool_response>\nrain\n</tool_response>"},
    ]
    same = server.post("/tokenize", json={"messages": spelled}).json()
    assert same["count"] == answer.usage.prompt_tokens


def test_tools_are_told_to_the_model_unless_none_may_be_called(server: Running) -> None:
    def prompt_tokens(**more: Any) -> int:
        body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 1, **more}
        return server.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]

    bare = prompt_tokens()
    assert prompt_tokens(tools=TOOLS, tool_choice="none") == bare
    told = server.post("/tokenize", json={"messages": MESSAGES, "tools": TOOLS}).json()["tokens"]
    assert prompt_tokens(tools=TOOLS) == len(told) > bare
    text = server.engine.tokenizer.decode(told)
    assert json.dumps(TOOLS[0]["function"], ensure_ascii=False) in text
    # What a description says is text, and ends no turn.
    assert told.count(server.engine.tokenizer.special["<|im_end|>"]) == 2


ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}


def test_allowed_tools(server: Running) -> None:
    answer = server.post("/v1/chat/completions", json={**CHAT, "tool_choice": ALLOWED, "n": 6, "seed": 4}).json()
    names = {call["function"]["name"] for one in answer["choices"] for call in one["message"].get("tool_calls", ())}
    assert names == {"find"}


def test_an_answer_or_calls(server: Running) -> None:
    strict = [{"type": "function", "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": {"ok": True}}}}
    answers = server.post(
        "/v1/chat/completions", json={**CHAT, "tools": strict, "response_format": form, "n": 16, "seed": 5}
    ).json()
    seen = set()
    for answer in answers["choices"]:
        checked(answer["message"].get("tool_calls", ()), cut=answer["finish_reason"] == "length")
        if answer["finish_reason"] == "stop":
            assert json.loads(answer["message"]["content"]) == {"ok": True}
        seen.add(answer["finish_reason"])
    assert seen >= {"stop", "tool_calls"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": None, "tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": NAMED}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "find"}, "tool_choice"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "find"}}}, "tool_choice"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a" * 65}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": TOOLS * 65}, "tools"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": "a",
                        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                    }
                ]
            },
            "messages[0].tool_calls",
        ),
        ({"messages": [{"role": "user", "content": "a", "tool_call_id": "1"}]}, "messages[0].tool_call_id"),
        (
            {
                "tool_choice": "required",
                "tools": [
                    {"type": "function", "function": {"name": "a", "parameters": {"properties": {"x": {"type": "y"}}}}}
                ],
            },
            "tools",
        ),
    ],
)
def test_what_cannot_be_called_is_a_400_that_names_the_field(
    server: Running, change: dict[str, Any], param: str
) -> None:
    assert refused(server.post("/v1/chat/completions", json={**CHAT, **change}), 400)["param"] == param


def test_arguments_that_are_no_json_go_back_as_they_are(server: Running) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"place": "Ro'}}
    messages = [
        *MESSAGES,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "wrong"}]},
    ]
    ids = server.post("/tokenize", json={"messages": messages}).json()["tokens"]
    assert json.dumps('{"place": "Ro') in server.engine.tokenizer.decode(ids)


def test_calls_that_look_like_answers_cannot_be_told_from_them(start: Start, roomy: Path) -> None:
    form = {"type": "json_object"}
    with start(roomy, tool_format="llama3") as server:
        assert refused(server.post("/v1/chat/completions", json={**CHAT, "response_format": form}), 400)["param"] == (
            "response_format"
        )
        chosen = {**CHAT, "response_format": form, "tool_choice": "required"}
        assert server.post("/v1/chat/completions", json=chosen).status_code == 200
