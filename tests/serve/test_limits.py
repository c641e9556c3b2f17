"""What is refused, with which status, and which field is named."""

import base64
import json
from typing import Any

import httpx
import pytest

from llmctl.serve.keys import POLICIES
from tests.serve.conftest import CONTEXT, MODEL, Running, Start

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
TEXT: dict[str, Any] = {"model": MODEL, "prompt": "a", "max_tokens": 2}


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object of a refusal, after checking its form."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": True}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1_000_000_000}, "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": 3}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logit_bias": {"5": 101}}, "logit_bias[5]"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"512": 1}}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"min_tokens": 300}, "min_tokens"),
        ({"typical_p": 0}, "typical_p"),
        ({"temprature": 0.5}, "temprature"),
    ],
)
@pytest.mark.parametrize(("path", "base"), [("/v1/completions", TEXT), ("/v1/chat/completions", CHAT)])
def test_a_bad_value_is_a_400_that_names_its_field(
    server: Running, path: str, base: dict[str, Any], change: dict[str, Any], param: str
) -> None:
    error = refused(server.post(path, json={**base, **change}), 400)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "a " * CONTEXT}, "prompt"),
        ({"prompt": "a" * 1_000_000}, "prompt"),
        ({"prompt": [5] * CONTEXT}, "prompt"),
        ({"max_tokens": CONTEXT}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
    ],
)
def test_completions_name_the_field(server: Running, change: dict[str, Any], param: str) -> None:
    assert refused(server.post("/v1/completions", json={**TEXT, **change}), 400)["param"] == param


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "a"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a" * 1_000_000}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a " * CONTEXT}]}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": CONTEXT}, "max_completion_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "tools[0].function.name"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}, "response_format"),
        ({"structured_outputs": {"regex": "["}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ],
)
def test_chats_name_the_field(server: Running, change: dict[str, Any], param: str) -> None:
    assert refused(server.post("/v1/chat/completions", json={**CHAT, **change}), 400)["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        b"null",
        b"\xff",
        b'{"model": "tiny-random", "prompt": "a", "temperature": NaN}',
        b'{"model": "tiny-random", "prompt": "a", "temperature": Infinity}',
        b'{"model": "tiny-random", "prompt": "\\ud800"}',
        b'{"model": "tiny-random", "prompt": ["a", "\\ud800"]}',
        b'{"model": "\\ud800", "prompt": "a"}',
        b'{"model": "tiny-random", "prompt": "a", "\\ud800": 1}',
        b"[" * 100_000,
        b'{"prompt": "a"}',
    ],
)
def test_a_body_that_is_no_request_is_a_400(server: Running, body: bytes) -> None:
    refused(server.post("/v1/completions", content=body, headers={"content-type": "application/json"}), 400)


def test_the_numbers_are_said(server: Running) -> None:
    error = refused(server.post("/v1/completions", json={**TEXT, "prompt": [5] * 10, "max_tokens": 250}), 400)
    assert error["message"] == "max_tokens: 250 after a prompt of 10 makes 260 tokens, the context is 256"
    assert error["code"] == "context_length_exceeded"


def test_fields_that_change_nothing_are_taken(server: Running) -> None:
    neutral = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "temperature": None,
        "n": None,
        "top_k": -1,
    }
    assert server.post("/v1/completions", json={**TEXT, **neutral, "best_of": 1}).status_code == 200
    more = {"tools": [], "response_format": {"type": "text"}, "parallel_tool_calls": True}
    assert server.post("/v1/chat/completions", json={**CHAT, **neutral, **more}).status_code == 200


def test_the_context_can_be_filled_to_the_last_token(server: Running) -> None:
    asked = {**TEXT, "prompt": [5] * (CONTEXT - 2), "max_tokens": 2, "ignore_eos": True}
    answer = server.post("/v1/completions", json=asked).json()
    assert answer["usage"]["total_tokens"] == CONTEXT


def test_unknown_routes_and_methods_have_the_error_object_too(server: Running) -> None:
    refused(httpx.get(server.url + "/v1/nothing"), 404)
    refused(httpx.get(server.url + "/v1/completions"), 405)


def test_a_body_beyond_the_bound_is_a_413(start: Start) -> None:
    with start(max_body_bytes=2048) as server:
        refused(server.post("/v1/completions", json={**TEXT, "prompt": "a" * 3000}), 413)

        def chunks() -> Any:
            yield b'{"prompt": "'
            yield b"a" * 3000

        refused(server.post("/v1/completions", content=chunks()), 413)
        assert server.post("/v1/completions", json=TEXT).status_code == 200


def test_a_body_that_does_not_come_is_a_408(start: Start) -> None:
    import socket

    with start(body_timeout_s=0.2) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_more_sequences_than_fit_are_refused_and_told_when_to_come_back(start: Start) -> None:
    with start(max_running=1, max_waiting=1, retry_after_s=3) as server:
        error = refused(server.post("/v1/completions", json={**TEXT, "n": 3}), 400)
        assert error["param"] == "n"
        long = {**TEXT, "max_tokens": 250, "ignore_eos": True, "stream": True, "n": 2}
        with httpx.stream("POST", server.url + "/v1/completions", json=long, timeout=60) as stream:
            events = stream.iter_lines()
            next(events)
            response = server.post("/v1/completions", json=TEXT)
            assert refused(response, 429)["code"] == "rate_limit_exceeded"
            assert response.headers["retry-after"] == "3"
        eventually(lambda: server.post("/v1/completions", json=TEXT).status_code == 200)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": ["a"] * 200 + ["a" * 1_000_000]},  # the last one is refused as too long once it is looked at
        {"prompt": ["a"] * 20, "n": 16, "logprobs": 5},
        {"prompt": ["a"] * 200, "max_tokens": 0, "echo": True},  # no sequence would run, but all would be encoded
    ],
)
def test_more_prompts_than_fit_are_refused_before_any_is_encoded(server: Running, change: dict[str, Any]) -> None:
    error = refused(server.post("/v1/completions", json={**TEXT, **change}), 400)
    assert error["param"] == "n"
    assert error["message"].endswith("this server takes at most 80 at one time")


def eventually(holds: Any, seconds: float = 5.0) -> None:
    """Wait until `holds()`."""
    import time

    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_max_tokens_of_the_server_bounds_every_request(start: Start) -> None:
    with start(max_tokens=4) as server:
        assert refused(server.post("/v1/completions", json={**TEXT, "max_tokens": 5}), 400)["param"] == "max_tokens"
        answer = server.post("/v1/chat/completions", json={key: CHAT[key] for key in ("model", "messages")}).json()
        assert answer["usage"]["completion_tokens"] <= 4


@pytest.mark.parametrize("path", [*sorted(POLICIES.keys() - {"/health", "/ready"}), "/nothing"])
def test_every_route_but_health_asks_for_the_key(start: Start, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("TEST_SERVE_KEY", "sésame")
    with start(api_key_env="TEST_SERVE_KEY") as server:
        right = "Bearer sésame".encode()
        for header in (
            {},
            {"Authorization": "Bearer sesame"},
            {"Authorization": "Bearer"},
            {"Authorization": b"Basic s\xc3\xa9same"},
            {"Authorization": "Basic " + base64.b64encode(b"someone:sesame").decode()},
            {"X-Api-Key": right},
        ):
            assert refused(server.post(path, headers=header), 401)["code"] == "invalid_api_key"
        assert httpx.get(server.url + "/health").status_code == 200
        assert httpx.get(server.url + "/ready").status_code == 200
        assert httpx.get(server.url + "/v1/models", headers={"Authorization": right}).status_code == 200
        assert httpx.get(server.url + "/v1/models", auth=("anyone", "sésame")).status_code == 200


def test_an_unset_key_stops_the_start(start: Start) -> None:
    from llmctl.config.errors import UsageError

    with pytest.raises(UsageError, match="TEST_NO_SUCH_KEY is empty or not set"), start(api_key_env="TEST_NO_SUCH_KEY"):
        pass


def test_a_port_in_use_is_said(server: Running, start: Start) -> None:
    from llmctl.config.errors import UsageError

    port = int(server.url.rpartition(":")[2])
    with pytest.raises(UsageError, match=f"127.0.0.1:{port} is in use"), start(port=port):
        pass


def test_messages_of_errors_stay_short(server: Running) -> None:
    error = refused(server.post("/v1/completions", json={**TEXT, "x" * 5000: 1}), 400)
    assert len(json.dumps(error)) < 600
