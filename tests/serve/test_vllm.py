"""vLLM as the engine: with a stand-in that speaks like it, and with the real one where an interpreter has it.

`LLMCTL_TEST_VLLM_PYTHON` names that interpreter.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from llmctl.config.errors import InputError, UsageError
from llmctl.config.serve import ServeConfig
from llmctl.inference.engine import Engine
from llmctl.inference.request import Request
from llmctl.serve.app import create_app
from llmctl.serve.running import run_app
from llmctl.serve.server import listen
from llmctl.serve.vllm import INSTALL, VllmEngine, check_options, command_of
from llmctl.serve.wire import ask, stream
from tests.evals.tiny import write_checkpoint
from tests.serve.conftest import CONTEXT, MODEL, Check, Running
from tests.serve.test_limits import refused
from tests.serve.test_running import LONG, eventually
from tests.serve.test_schema import events

STANDIN = Path(__file__).parent / "standin"
REAL = os.environ.get("LLMCTL_TEST_VLLM_PYTHON", "")
TEXT: dict[str, Any] = {"model": MODEL, "prompt": "the list is", "max_tokens": 24, "temperature": 0}
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "the list"}], "max_tokens": 24}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 64, as vLLM has none of 16 on a CPU."""
    return write_checkpoint(tmp_path_factory.mktemp("heads"), context=CONTEXT, head_width=64)


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        if not REAL:
            path = os.pathsep.join([str(STANDIN), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
            patch.setenv("PYTHONPATH", path)
        patch.setenv("TEST_SERVE_KEY", "sesame")
        config = ServeConfig(port=0, engine="vllm", vllm_python=REAL, api_key_env="TEST_SERVE_KEY", max_running=4)
        engine = VllmEngine(checkpoint, config)
        app = create_app(engine, config, MODEL)
        urls: list[str] = []
        ready = threading.Event()
        told = lambda url: (urls.append(url), ready.set())  # noqa: E731
        thread = threading.Thread(target=run_app, args=(app, config, listen(config), told), daemon=True)
        thread.start()
        assert ready.wait(30)
        try:
            with httpx.Client(timeout=120, headers={"Authorization": "Bearer sesame"}) as http:
                yield Running(urls[0], engine, app.state.service, app.state.stop, http)  # type: ignore[arg-type]
        finally:
            app.state.stop()
            thread.join(30)
            engine.close()
        assert not engine.alive


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Iterator[Engine]:
    with Engine.open(checkpoint) as engine:
        yield engine


def test_greedy_answers_are_those_of_our_engine(server: Running, reference: Engine) -> None:
    tokenizer = reference.tokenizer
    for prompt in ("the list is", "a", "café — 漢字", "def f(x):"):
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        (ours,) = reference.generate([Request(ids, max_tokens=24, temperature=0, logprobs=2)])
        body = server.post("/v1/completions", json={**TEXT, "prompt": prompt, "logprobs": 2}).json()
        (choice,) = body["choices"]
        assert (choice["text"], choice["finish_reason"]) == (ours.text, ours.finish_reason)
        assert body["usage"]["prompt_tokens"] == len(ids)
        scores = [one.logprob for one in ours.logprobs or ()][: len(choice["logprobs"]["token_logprobs"])]
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(scores, abs=1e-3)
        assert all(len(top) == 2 for top in choice["logprobs"]["top_logprobs"])


def test_bodies_and_chunks_conform(server: Running, conforms: Check) -> None:
    asked = {**CHAT, "seed": 3, "n": 2, "logprobs": True, "stop": ["the"]}
    whole = server.post("/v1/chat/completions", json=asked).json()
    conforms("CreateChatCompletionResponse", whole)
    texts = ["", ""]
    for chunk in events(server.post("/v1/chat/completions", json={**asked, "stream": True})):
        conforms("CreateChatCompletionStreamResponse", chunk)
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content", "")
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]
    assert all("the" not in text for text in texts)


def test_forms_and_calls(server: Running) -> None:
    picked = {**TEXT, "structured_outputs": {"choice": ["yes", "no"]}, "n": 3, "temperature": 1}
    texts = {choice["text"] for choice in server.post("/v1/completions", json=picked).json()["choices"]}
    assert texts <= {"yes", "no"}
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    (choice,) = server.post("/v1/chat/completions", json={**CHAT, "response_format": form}).json()["choices"]
    assert choice["finish_reason"] == "length" or json.loads(choice["message"]["content"])["a"] in (1, 2)


def test_what_vllm_has_not_is_refused(server: Running) -> None:
    for change in ({"typical_p": 0.5}, {"banned_token_ids": [5]}, {"logprobs_mode": "sampled"}):
        (name,) = change
        assert name in refused(server.post("/v1/completions", json={**TEXT, **change}), 400)["message"]


def test_keys_and_limits_are_ours(server: Running) -> None:
    refused(httpx.post(server.url + "/v1/completions", json=TEXT), 401)
    refused(httpx.get(server.url + "/metrics"), 401)
    assert refused(server.post("/v1/completions", json={**TEXT, "n": 10**6}), 400)["param"] == "n"
    assert refused(server.post("/v1/completions", json={**TEXT, "max_tokens": CONTEXT}), 400)["param"] == "max_tokens"
    assert server.http.get(server.url + "/v1/models").json()["data"][0]["max_model_len"] == CONTEXT


def at_vllm(server: Running) -> float:
    """Sequences that run or wait there, by its own count."""
    text = asyncio.run(ask(server.engine._socket, "/metrics")).decode()  # type: ignore[attr-defined]
    counts = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(counts))


def is_free(server: Running) -> bool:
    return not (server.service.live or server.service._in_flight or at_vllm(server))


def test_a_client_that_leaves_a_stream_stops_vllm(server: Running) -> None:
    asked = {**LONG, "n": 4, "stream": True}
    with server.http.stream("POST", server.url + "/v1/completions", json=asked) as response:
        lines = response.iter_lines()  # kept, as dropping it closes the connection
        next(lines)
        assert REAL or at_vllm(server)  # the real one may be done before it counts
    eventually(lambda: is_free(server), 30)


def test_a_client_that_leaves_at_any_point_stops_vllm(server: Running) -> None:
    async def leave(patience: float, stream: bool) -> None:
        async with httpx.AsyncClient(headers=server.http.headers, timeout=120) as http:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await http.post(server.url + "/v1/completions", json={**LONG, "n": 2, "stream": stream})

    async def crowd() -> None:
        chance = random.Random(1)
        await asyncio.gather(*(leave(chance.uniform(0.001, 0.3), chance.random() < 0.5) for _ in range(24)))

    asyncio.run(crowd())
    eventually(lambda: is_free(server), 30)


def test_an_answer_that_our_stop_string_ends_is_ended_at_vllm(server: Running) -> None:
    asked = {**LONG, "seed": 5, "stop": ["a", "e", " ", "t"]}  # one of them comes soon
    assert server.post("/v1/completions", json=asked).json()["choices"][0]["finish_reason"] == "stop"
    eventually(lambda: is_free(server), 30)


def test_a_stream_that_is_closed_ends_its_connection(tmp_path: Path) -> None:
    async def first_of_many() -> bytes:
        ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"}")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\ndata: 1\n\ndata: 2\n\n")
            ended.set_result(await reader.read())  # until the other side closes
            writer.close()

        async with await asyncio.start_unix_server(answer, tmp_path / "socket"):
            chunks = stream(tmp_path / "socket", "/", {})
            assert await anext(chunks) == 1
            await chunks.aclose()
            return await asyncio.wait_for(ended, 5)

    assert asyncio.run(first_of_many()) == b""


@pytest.mark.skipif(bool(REAL), reason="only the stand-in refuses this")
def test_what_vllm_refuses_is_an_error(server: Running) -> None:
    answer = server.post("/v1/completions", json={**TEXT, "prompt": [66, 66]})
    assert refused(answer, 500)["code"] == "internal_error"


def test_options_that_vllm_cannot_carry_are_named() -> None:
    given = {"weights": "int8", "cache_bits": 8, "cache_tokens": 100, "draft_tokens": 2, "device": "cpu"}
    for name, value in given.items():
        with pytest.raises(UsageError, match=f"^{name}: --engine vllm takes no"):
            check_options(ServeConfig.model_validate({"engine": "vllm", name: value}))
    command = command_of(Path("m"), ServeConfig(engine="vllm", precision="bf16", prefix_cache=False), Path("s"))
    assert {"bfloat16", "--no-enable-prefix-caching", "--uds"} <= set(command)


def test_without_vllm_one_line_says_what_to_install(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # without the stand-in
    if subprocess.run([sys.executable, "-c", "import vllm"], capture_output=True, check=False).returncode == 0:
        pytest.skip("vLLM is installed here")
    with pytest.raises(UsageError, match="vLLM is not installed for") as caught:
        VllmEngine(checkpoint, ServeConfig(engine="vllm"))
    assert caught.value.hint == INSTALL
    with pytest.raises(UsageError, match="cannot run /no/python"):
        VllmEngine(checkpoint, ServeConfig(engine="vllm", vllm_python="/no/python"))


SERVE = """
import sys
from pathlib import Path
from llmctl.config.serve import ServeConfig
from llmctl.serve.vllm import VllmEngine
engine = VllmEngine(Path(sys.argv[1]), ServeConfig(engine="vllm"))
print(engine._process.pid, flush=True)
import time
time.sleep(100)
"""


def test_a_killed_server_leaves_no_vllm_behind(checkpoint: Path) -> None:
    path = os.pathsep.join([str(STANDIN), str(Path(__file__).parents[2])])
    command = [sys.executable, "-c", SERVE, str(checkpoint)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_vllm_that_does_not_start_is_said(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "vllm"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('broken')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]))
    began = time.monotonic()
    with pytest.raises(InputError, match="does not start with this checkpoint"):
        VllmEngine(checkpoint, ServeConfig(engine="vllm"))
    assert time.monotonic() - began < 60
