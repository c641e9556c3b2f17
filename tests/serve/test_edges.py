"""The edges of the server: TLS, slow and oversized headers, deep JSON, its log for programs, and token ids."""

import json
import socket
import ssl
import subprocess
import time

import httpx
import pytest

from llmctl import __version__
from llmctl.config.errors import InputError
from llmctl.config.serve import ServeConfig
from llmctl.serve.server import check_certificate, log_to_stderr
from tests.serve.conftest import CONTEXT, MODEL, Running, Start
from tests.serve.test_limits import refused
from tests.serve.test_running import eventually


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", cert, "-keyout", key]
    subprocess.run([*made, *names], check=True, capture_output=True)
    return cert, key


def test_https_by_files(start: Start, certificate: tuple[str, str]) -> None:
    cert, key = certificate
    with start(tls_cert=cert, tls_key=key) as server:
        assert server.url.startswith("https://127.0.0.1:")
        answer = httpx.get(server.url + "/version", verify=ssl.create_default_context(cafile=cert))
        assert answer.json() == {"version": __version__}
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url + "/version")  # the certificate is nobody's that is known


def test_a_wrong_certificate_is_refused_before_the_model_is_loaded(certificate: tuple[str, str]) -> None:
    cert, key = certificate
    check_certificate(ServeConfig(tls_cert=cert, tls_key=key))
    for pair in ((cert, cert), (key, key), ("nowhere.pem", key)):
        with pytest.raises(InputError, match=f"cannot use {pair[0]}"):
            check_certificate(ServeConfig(tls_cert=pair[0], tls_key=pair[1]))


def spoken(server: Running, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """What the server says to bytes on a bare connection, until it closes it."""
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port), timeout=20) as raw:
        for part in parts:
            raw.sendall(part)
            time.sleep(pause_s)
        said = b""
        while got := raw.recv(65536):
            said += got
    return said


def test_headers_that_do_not_come_end_the_connection(start: Start) -> None:
    with start(header_timeout_s=0.3) as server:
        before = time.monotonic()
        head, _, body = spoken(server, b"GET /health HTTP/1.1\r\nX-Slow: ").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert json.loads(body)["error"]["code"] == "headers_too_slow"
        assert spoken(server) == b""
        whole = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        assert spoken(server, whole, b"GET /hea", pause_s=0.1).startswith(
            b"HTTP/1.1 200"
        )  # the second request never comes
        assert time.monotonic() - before < 15
        long = {"model": MODEL, "prompt": [5], "max_tokens": CONTEXT - 1, "ignore_eos": True}
        assert server.post("/v1/completions", json=long).status_code == 200  # an answer may take its time


@pytest.mark.parametrize(("pause_s", "status", "code"), [(0.0, 431, "headers_too_large"), (0.2, 400, "invalid_http")])
def test_long_headers_get_the_error_object(server: Running, pause_s: float, status: int, code: str) -> None:
    opening = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Big: " + b"a" * 60_000
    rest = b"\r\n\r\n"
    said = spoken(server, opening, rest, pause_s=pause_s) if pause_s else spoken(server, opening + rest)
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status}".encode())
    assert json.loads(body)["error"]["code"] == code


@pytest.mark.parametrize(
    "body", [b"[" * 200_000, b'{"a":' * 100_000, b'{"model":' + b"[" * 50_000 + b"]" * 50_000 + b"}"]
)
def test_deep_json_is_a_400(server: Running, body: bytes) -> None:
    answer = server.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    refused(answer, 400)


def test_tokens_there_and_back(server: Running) -> None:
    text = "def f(x):\n    return x — ünïcode"
    told = server.post("/tokenize", json={"prompt": text}).json()
    tokenizer = server.engine.tokenizer
    assert told == {
        "count": len(told["tokens"]),
        "max_model_len": CONTEXT,
        "tokens": [tokenizer.bos_id, *tokenizer.encode(text)],
    }
    bare = server.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()["tokens"]
    assert bare == told["tokens"][1:]
    assert server.post("/detokenize", json={"tokens": bare, "model": MODEL}).json() == {"prompt": text}


def test_a_chat_is_tokenized_as_it_is_generated_from(server: Running) -> None:
    messages = [{"role": "user", "content": "hello"}]
    opened = server.post("/tokenize", json={"messages": messages}).json()["tokens"]
    closed = server.post("/tokenize", json={"messages": messages, "add_generation_prompt": False}).json()["tokens"]
    answer = server.post("/v1/chat/completions", json={"model": MODEL, "messages": messages, "max_tokens": 1}).json()
    assert len(opened) == answer["usage"]["prompt_tokens"]
    assert opened[: len(closed)] == closed != opened


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, None),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, 400, None),
        ("/tokenize", {"prompt": "a", "model": "another"}, 404, "model"),
        ("/tokenize", {"prompt": "a" * 200_000}, 400, "prompt"),
        ("/tokenize", {"prompt": 5}, 400, "prompt"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"tokens": [10**9]}, 400, "tokens"),
        ("/detokenize", {"token": [1]}, 400, "tokens"),
    ],
)
def test_what_cannot_be_tokenized(server: Running, path: str, body: dict, status: int, param: str | None) -> None:
    assert refused(server.post(path, json=body), status)["param"] == param


@pytest.mark.usefixtures("restored_log")
@pytest.mark.parametrize("prompts", [False, True])
def test_the_log_for_programs(start: Start, capsys: pytest.CaptureFixture[str], prompts: bool) -> None:
    log_to_stderr()
    with start(log_format="json", log_prompts=prompts) as server:
        prompt = "the secret\nlist"
        asked = {"model": MODEL, "prompt": prompt, "max_tokens": 3, "ignore_eos": True, "n": 2}
        assert server.post("/v1/completions", json=asked).status_code == 200
        found: list[dict] = []

        def arrived() -> bool:
            lines = capsys.readouterr().err.splitlines()
            found.extend(json.loads(line) for line in lines if line.startswith("{"))
            return any(line["route"] == "/v1/completions" for line in found)

        eventually(arrived)
    (line,) = [line for line in found if line["route"] == "/v1/completions"]
    assert (line["method"], line["status"], line["client"], line["stream"]) == ("POST", 200, "127.0.0.1", False)
    assert (line["choices"], line["completion_tokens"], line["finish_reasons"]) == (2, 6, ["length", "length"])
    assert line["ms"] > 0
    if prompts:
        assert line["prompts"] == [prompt]
        assert len(line["answers"]) == 2
    else:
        assert not {"prompts", "answers"} & line.keys()


def test_the_ids_of_an_answer_come_with_all_their_log_probabilities(server: Running) -> None:
    """The end token's among them, which nobody sees who asks for no ids; whole and in a stream."""
    eos = server.engine.tokenizer.eos_id
    body = {"model": MODEL, "prompt": [5, 6, 7], "max_tokens": 8, "seed": 1, "logprobs": 0, "min_tokens": 2}
    body |= {"logit_bias": {str(eos): 100}, "return_token_ids": True}
    (choice,) = server.post("/v1/completions", json=body).json()["choices"]
    ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    assert (len(ids), ids[-1], choice["finish_reason"]) == (3, eos, "stop")
    assert len(logprobs) == len(ids)
    assert server.engine.tokenizer.decode(ids[:-1]) == choice["text"]
    streamed = server.post("/v1/completions", json={**body, "stream": True}).text.split("\n\n")
    parts = [json.loads(line.removeprefix("data: "))["choices"][0] for line in streamed if "{" in line]
    assert [one for part in parts for one in part["token_ids"]] == ids
    assert [one for part in parts for one in part["logprobs"]["token_logprobs"]] == logprobs
    (plain,) = server.post("/v1/completions", json={**body, "return_token_ids": False}).json()["choices"]
    assert "token_ids" not in plain
    assert plain["logprobs"]["token_logprobs"] == logprobs[:-1]
