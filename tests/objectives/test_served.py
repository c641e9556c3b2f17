"""Rollouts that a server draws: our own, as a process; and servers that say too little."""

import contextlib
import http.server
import os
import signal
import subprocess
import threading
import time

import httpx
import pytest

from llmctl.config.errors import InputError, InterruptedRunError
from llmctl.data.rollouts import FILE
from llmctl.inference.remote import FailedError
from llmctl.objectives.grpo import train
from llmctl.pipeline.job import Silent
from llmctl.train.launch import _free_port
from tests.answering import Answering
from tests.conftest import LLMCTL, environment

from .conftest import guessing
from .test_grpo import SHORT, answers_in_file, bare, grpo, job_of

REAL = os.environ.get("LLMCTL_TEST_VLLM_PYTHON", "")


@pytest.fixture(scope="module")
def short(stages, guesser, copying):
    return stages("grpo", grpo(**SHORT), input=guesser, prompts=copying)  # the run of test_grpo.py, from the cache


def served(made, store, port):
    """Our server as a program."""
    command = [*LLMCTL, "serve", made.ref, "--port", str(port), "-q", "device=cpu", "max_waiting=200"]
    environ = environment(OMP_NUM_THREADS="1", LLMCTL_STORE=str(store.root))
    return answering(command, environ, f"http://127.0.0.1:{port}/ready", 60)


@contextlib.contextmanager
def answering(command, environ, url, patience_s):
    """A program, once it answers, which ends with all that it started."""
    process = subprocess.Popen(command, env=environ, start_new_session=True)
    try:
        deadline = time.monotonic() + patience_s
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(url, timeout=5).status_code == httpx.codes.OK:
                    break
            time.sleep(0.05)
        assert process.poll() is None
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class KillAfter(Silent):
    """Ends the server once so many steps are done."""

    def __init__(self, step, process):
        self.step, self.process = step, process

    def update(self, done, total, unit, **facts):
        if done == self.step:
            self.process.kill()
            self.process.wait()


def test_a_server_draws_what_the_engine_would_and_nothing_is_lost_where_it_dies(
    stages, guesser, copying, short, tmp_path
):
    port = _free_port()
    fields = {"steps": 8, "checkpoint_every_steps": 0, "server": {"url": f"http://127.0.0.1:{port}/v1"}}
    with served(guesser, stages.store, port) as process:
        whole = job_of(tmp_path / "whole", guesser, copying, **fields)
        train(whole)
        with pytest.raises(InterruptedRunError, match=f"127.0.0.1:{port}/v1 does not answer: .*refused") as caught:
            train(job_of(tmp_path / "parts", guesser, copying, KillAfter(3, process), **fields))
        assert (caught.value.exit_code, caught.value.hint) == (75, "the same command resumes once it does")
    with pytest.raises(InputError, match="server_error: .*refused"):
        train(job_of(tmp_path / "parts", guesser, copying, **fields))
    with served(guesser, stages.store, port):
        parts = job_of(tmp_path / "parts", guesser, copying, **fields)
        train(parts)
    # A server puts together what comes, so the last bits of log-probabilities are not the same each time.
    for mine, theirs in zip(bare(parts.metrics_file), bare(whole.metrics_file), strict=True):
        assert {name: one for name, one in mine.items() if name != "logprob_gap"} == pytest.approx(
            {name: one for name, one in theirs.items() if name != "logprob_gap"}, rel=1e-3, abs=1e-5
        )
    assert [row["ids"] for row in answers_in_file(parts.out / FILE)] == [
        row["ids"] for row in answers_in_file(whole.out / FILE)
    ]
    first, second = (answers_in_file(whole.out / FILE)[half] for half in (slice(80), slice(80, 160)))
    for name in ("prompt_id", "ids", "completion", "truncated", "reward", "advantage"):
        assert [row[name] for row in first] == [row[name] for row in answers_in_file(short.file(FILE))[:80]], name
    for row, own in zip(first, answers_in_file(short.file(FILE)), strict=False):
        assert row["logprobs"] == pytest.approx(own["logprobs"], abs=1e-4)
    assert [row["step"] for row in bare(whole.metrics_file) if "logprob_gap" in row] == [
        1
    ]  # where the weights are its own
    assert {row["step"] for row in second} == {5}


@contextlib.contextmanager
def saying(choice, status=200):
    """A server whose every answer has this one choice."""

    class Handler(Answering):
        def get(self):
            self.say(200, {"data": [{"id": "m"}]})

        def post(self, body):
            del body
            self.say(status, {"choices": [choice]} if status == 200 else {"error": {"message": "no such field"}})

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("choice", "status", "fault"),
    [
        ({"text": "1", "finish_reason": "length"}, 200, "says no token ids of what it draws"),
        (
            {"text": "1", "token_ids": [9], "logprobs": None, "finish_reason": "length"},
            200,
            "says no log-probabilities of what it draws",
        ),
        (
            {"text": "1", "token_ids": [9], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "stop"},
            200,
            "an answer of 1 ids and 1 log-probabilities that ended by 'stop'",
        ),
        ({}, 400, "refuses to draw: server_error: HTTP 400: no such field"),
    ],
    ids=["no ids", "no log-probabilities", "without the id that ends it", "refused"],
)
def test_a_server_that_says_too_little_is_refused(guesser, copying, tmp_path, choice, status, fault):
    with saying(choice, status) as url, pytest.raises(InputError, match=fault):
        train(job_of(tmp_path, guesser, copying, steps=4, server={"url": url}))


def test_a_server_that_is_busy_does_not_refuse():
    statuses = (0, 200, 400, 401, 404, 408, 422, 429, 500, 503)
    assert [status for status in statuses if FailedError("", status).refuses] == [400, 401, 404, 422]


@pytest.mark.skipif(not REAL, reason="LLMCTL_TEST_VLLM_PYTHON names no interpreter that has vLLM")
def test_vllm_takes_the_weights_before_each_rollout(stages, digits, copying, tmp_path):
    """What it says must be what the trainer computes, in each rollout's first step: the run would stop."""
    # Heads of 64, as vLLM has none of 16 on a CPU; an output matrix of its own, as 0.32 loads no other one anew there.
    policy = guessing(stages, digits, width=128, heads=2, tied_embeddings=False)
    port = _free_port()
    command = [REAL, "-m", "vllm.entrypoints.openai.api_server", "--model", str(policy.data), "--dtype", "float32"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-num-seqs", "32", "--generation-config", "vllm"]
    environ = {**environment(), "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    url = f"http://127.0.0.1:{port}"
    job = job_of(tmp_path, policy, copying, steps=12, server={"url": f"{url}/v1", "push_to": str(tmp_path / "pushed")})
    with answering(command, environ, f"{url}/health", 300):
        train(job)
    gaps = {row["step"]: row["logprob_gap"] for row in bare(job.metrics_file) if "logprob_gap" in row}
    assert gaps.keys() == {1, 5, 9}
    assert max(gaps.values()) < 1e-4
    rows = answers_in_file(job.out / FILE)
    assert [row["reward"] for row in rows] == [float(row["completion"].strip() == row["answer"]) for row in rows]
