"""A server at work: metrics that count, clients that leave, an engine that fails, and the end of the process."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmctl.inference.scheduler import Scheduler
from tests.serve.conftest import MODEL, Running, Start

LONG: dict[str, Any] = {"model": MODEL, "prompt": "a", "max_tokens": 250, "ignore_eos": True}
SHORT: dict[str, Any] = {"model": MODEL, "prompt": "a", "max_tokens": 5, "ignore_eos": True}


def metrics(server: Running) -> dict[str, float]:
    """Values by name and the labels but the model's, as Prometheus reads them."""
    found = {}
    for family in text_string_to_metric_families(httpx.get(server.url + "/metrics").text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()) if key != "model_name")
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def eventually(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until `holds()`."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_metrics_count_what_was_served(start: Start) -> None:
    with start() as server:
        answers = [server.post("/v1/completions", json={**SHORT, "n": n}).json() for n in (1, 2)]
        counted = metrics(server)
        assert counted["vllm:prompt_tokens_total"] == 3 * answers[0]["usage"]["prompt_tokens"]
        assert counted["vllm:generation_tokens_total"] == 15
        assert counted["vllm:request_success_total{finished_reason=length}"] == 3
        assert counted["vllm:time_to_first_token_seconds_count"] == 3
        assert counted["vllm:inter_token_latency_seconds_count"] == 12
        assert counted["vllm:e2e_request_latency_seconds_count"] == 3
        assert counted["vllm:num_requests_running"] == 0
        assert counted["vllm:num_requests_waiting"] == 0
        assert counted["llmctl:http_responses_total{route=/v1/completions,status=200}"] == 2
        httpx.get(server.url + "/a/made/up/path")
        assert metrics(server)["llmctl:http_responses_total{route=other,status=404}"] == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_the_engine(start: Start, stream: bool) -> None:
    with start() as server:
        with pytest.raises(httpx.ReadTimeout):  # noqa: SIM117 - the client leaves inside
            with httpx.stream(
                "POST", server.url + "/v1/completions", json={**LONG, "n": 16, "stream": stream}, timeout=0.15
            ) as response:
                for _ in response.iter_lines():
                    time.sleep(0.05)
                    raise httpx.ReadTimeout("leave in mid-stream")
        eventually(lambda: server.engine.running + server.engine.waiting == 0, 2.0)
        eventually(lambda: metrics(server).get("vllm:request_success_total{finished_reason=abort}") == 16.0)
        assert not server.service.live
        assert server.post("/v1/completions", json=SHORT).status_code == 200


def test_many_clients_are_answered_together_and_alike(server: Running) -> None:
    asked = {**SHORT, "temperature": 0, "max_tokens": 20}
    alone = server.post("/v1/completions", json=asked).json()["choices"][0]["text"]
    texts: list[str] = []

    def ask() -> None:
        texts.append(server.post("/v1/completions", json=asked).json()["choices"][0]["text"])

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [alone] * 24


def test_the_event_loop_answers_while_the_engine_works(server: Running) -> None:
    thread = threading.Thread(target=server.post, args=("/v1/completions",), kwargs={"json": {**LONG, "n": 16}})
    thread.start()
    eventually(lambda: server.engine.running == 16)
    started = time.monotonic()
    assert httpx.get(server.url + "/health").json() == {"status": "ok"}
    assert time.monotonic() - started < 0.5
    assert thread.is_alive()
    thread.join()


def test_sequences_that_run_or_wait_take_no_threads(start: Start) -> None:
    with start(max_running=1, max_n=100, max_waiting=200) as server:
        server.post("/v1/completions", json=SHORT)  # the pool that tokenizes prompts has its first thread now
        before = threading.active_count()
        asked = {**LONG, "n": 100, "stream": True}
        with httpx.stream("POST", server.url + "/v1/completions", json=asked, timeout=60) as response:
            lines = response.iter_lines()  # kept, as dropping it closes the connection
            next(lines)
            assert server.engine.running + server.engine.waiting >= 99
            assert threading.active_count() <= before + 2
        eventually(lambda: server.engine.running + server.engine.waiting == 0, 2.0)
        eventually(lambda: server.service._in_flight == 0)


def test_a_failing_engine_is_an_error_and_not_a_finished_answer(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    with start() as server:
        steps = 0
        step = Scheduler.step

        def failing(scheduler: Scheduler) -> None:
            nonlocal steps
            steps += 1
            if steps > 5:
                raise RuntimeError("out of memory, for instance")
            step(scheduler)

        monkeypatch.setattr(Scheduler, "step", failing)
        lines = server.post("/v1/completions", json={**LONG, "stream": True}).text.strip().split("\n\n")
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "internal_error"
        assert "data: [DONE]" not in lines
        assert httpx.get(server.url + "/health").status_code == 503
        with pytest.raises(openai.InternalServerError):
            server.client().completions.create(model=MODEL, prompt="a")


def test_requests_that_outlive_the_grace_period_are_told(start: Start) -> None:
    with (
        start(shutdown_s=1, max_running=1, max_n=64) as server,
        httpx.stream(
            "POST", server.url + "/v1/completions", json={**LONG, "n": 64, "stream": True}, timeout=60
        ) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        server.stop()
        assert httpx.get(server.url + "/health").status_code == 200
        assert httpx.get(server.url + "/ready").json() == {"status": "stopping"}
        late = server.post("/v1/completions", json=SHORT)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "shutting_down")
        assert late.headers["retry-after"] == "1"
        rest = [line for line in lines if line]
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"


GAUGES = re.compile("vllm:num_requests_(running|waiting){")
SERVE = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from llmctl.config.serve import ServeConfig
from llmctl.serve.server import serve
config = ServeConfig(port=0, device="cpu", model_name="tiny-random", shutdown_s=120)
serve(Path(sys.argv[1]), config, lambda url: print(url, file=sys.stderr, flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_lets_all_end_whole_and_the_process_end_well(roomy: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(roomy)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        url = process.stderr.readline().strip()
        begun, whole = threading.Semaphore(0), []
        asked = {**LONG, "max_tokens": 300}

        def stream() -> None:
            with httpx.stream("POST", url + "/v1/completions", json={**asked, "stream": True}, timeout=120) as response:
                lines = response.iter_lines()
                next(lines)
                begun.release()
                whole.append([line for line in lines if line][-1] == "data: [DONE]")

        def ask() -> None:
            answer = httpx.post(url + "/v1/completions", json={**asked, "n": 2}, timeout=120).json()
            whole.append(answer["usage"]["completion_tokens"] == 600)

        def running() -> float:
            return sum(float(line.split()[-1]) for line in http.get("/metrics").text.splitlines() if GAUGES.match(line))

        threads = [threading.Thread(target=target) for target in [ask] * 4 + [stream] * 12]
        with httpx.Client(base_url=url, timeout=120) as http:
            for thread in threads[:4]:
                thread.start()
            eventually(lambda: running() == 8, 30)
            for thread in threads[4:]:
                thread.start()
            for _ in threads[4:]:
                assert begun.acquire(timeout=60)
            process.send_signal(number)
            eventually(lambda: http.get("/ready").status_code == 503)
            late = [http.post("/v1/completions", json=SHORT) for _ in range(3)]
        for thread in threads:
            thread.join(120)
        assert whole == [True] * 16
        assert [(one.status_code, one.headers["retry-after"]) for one in late] == [(503, "1")] * 3
        assert process.wait(30) == 0
        assert process.stdout.read() == ""
