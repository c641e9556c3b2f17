"""Every body that leaves the server, against the schemas that OpenAI publishes, and the framing of streams."""

import copy
import json
from typing import Any

import httpx
import jsonschema
import pytest

from tests.serve.conftest import MODEL, Check, Running

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "the list"}], "max_tokens": 6}
TEXT: dict[str, Any] = {"model": MODEL, "prompt": "the list", "max_tokens": 6}


def events(response: httpx.Response) -> list[Any]:
    """The JSON bodies of a stream, after checking its framing to the byte."""
    assert response.headers["content-type"].split(";")[0] == "text/event-stream"
    assert response.content.endswith(b"\n\n")
    frames = response.content.decode().split("\n\n")[:-1]
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    assert frames.pop() == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def test_the_checker_knows_a_wrong_body(conforms: Check) -> None:
    with pytest.raises(jsonschema.ValidationError):
        conforms("ErrorResponse", {"error": {"message": "no type"}})


def test_models(server: Running, conforms: Check) -> None:
    conforms("ListModelsResponse", httpx.get(server.url + "/v1/models").json())


@pytest.mark.parametrize("more", [{}, {"logprobs": True, "top_logprobs": 2}, {"logprobs": True}, {"n": 2}])
def test_chats(server: Running, conforms: Check, more: dict[str, Any]) -> None:
    body = server.post("/v1/chat/completions", json={**CHAT, **more}).json()
    conforms("CreateChatCompletionResponse", body)
    # No optional object is sent as null.
    assert set(body) == {"id", "object", "created", "model", "choices", "usage"}
    assert all(set(choice["message"]) == {"role", "content", "refusal"} for choice in body["choices"])


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"logprobs": 2},
        {"logprobs": 0},
        {"n": 2, "echo": True},
        {"n": 2, "echo": True, "logprobs": 2},
        {"frequency_penalty": 0.5, "presence_penalty": 1.0, "logit_bias": {"40": -100}, "min_p": 0.1, "min_tokens": 2},
    ],
)
def test_completions(server: Running, conforms: Check, more: dict[str, Any]) -> None:
    conforms("CreateCompletionResponse", server.post("/v1/completions", json={**TEXT, **more}).json())


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"logprobs": True, "top_logprobs": 2},
        {"n": 2, "stream_options": {"include_usage": True}},
    ],
)
def test_chat_streams(server: Running, conforms: Check, more: dict[str, Any]) -> None:
    chunks = events(server.post("/v1/chat/completions", json={**CHAT, **more, "stream": True}))
    for chunk in chunks:
        conforms("CreateChatCompletionStreamResponse", chunk)
    assert len({chunk["id"] for chunk in chunks}) == 1
    n = more.get("n", 1)
    heads = [chunk["choices"][0] for chunk in chunks[:n]]
    assert [head["index"] for head in heads] == list(range(n))
    assert all(head["delta"] == {"role": "assistant", "content": ""} for head in heads)
    if "stream_options" in more:
        last = chunks.pop()
        assert last["choices"] == []
        assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"]
        assert all(chunk["usage"] is None for chunk in chunks)
    else:
        assert all("usage" not in chunk for chunk in chunks)
    ends = [chunk["choices"][0]["index"] for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    assert sorted(ends) == list(range(n))


def test_completion_streams(server: Running, conforms: Check) -> None:
    asked = {**TEXT, "stream": True, "logprobs": 1, "stream_options": {"include_usage": True}}
    chunks = events(server.post("/v1/completions", json=asked))
    assert 1 <= chunks[-1]["usage"]["completion_tokens"] <= 6
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    for chunk in chunks:
        # The schema has no null here, but the API sends it until the last chunk of a choice; clients rely on that.
        assert all(choice["finish_reason"] in (None, "stop", "length") for choice in chunk["choices"])
        # So with the null usage that the API documents for every chunk but the last.
        filled = {key: value for key, value in copy.deepcopy(chunk).items() if value is not None}
        for choice in filled["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        conforms("CreateCompletionResponse", filled)


def test_a_stream_carries_no_usage_that_was_not_asked_for(server: Running) -> None:
    chunks = events(server.post("/v1/completions", json={**TEXT, "stream": True}))
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/completions", {**TEXT, "temperature": -1}),
        ("/v1/chat/completions", {**CHAT, "model": "other"}),
        ("/v1/chat/completions", {**CHAT, "stream": True, "max_tokens": 10**6}),
        ("/v1/nothing", {}),
    ],
)
def test_errors(server: Running, conforms: Check, path: str, body: dict[str, Any]) -> None:
    conforms("ErrorResponse", server.post(path, json=body).json())
