"""vLLM as the engine behind our server: a process of its own, which only we can reach.

It is asked for token ids of token ids, over a socket in a private folder. So keys, limits, templates, calls, stop
strings and bodies are those of our own engine, and what vLLM leaves open to everybody is reachable by nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from llmctl.config.errors import InputError, UsageError
from llmctl.config.serve import ServeConfig
from llmctl.inference.constraint import Forms
from llmctl.inference.engine import Deliver, EngineClosedError
from llmctl.inference.request import Constraint, Event, Request
from llmctl.inference.scheduler import Counts
from llmctl.model.config_json import CONFIG_FILE, read_config
from llmctl.serve.vllm_answer import Answer
from llmctl.serve.vllm_request import asked_of_vllm
from llmctl.serve.wire import HttpFailure, ask, stream
from llmctl.tokens.tokenizer import Tokenizer

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
# The process and all of its own end with us, however we end: their stdin is a pipe of ours. A session of its own keeps
# Ctrl-C from it, as answers are to finish first.
LAUNCH = """
import os, runpy, signal, sys, threading
def watch():
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
"""
MODEL = "model"  # its name between us and the process
SCRAPE_S = 2.0
START_S = 600.0  # vLLM compiles on its first start
INSTALL = "pip install 'llmctl[vllm]', or name the interpreter of an environment that has it: vllm_python=PATH"
UNKNOWN = {
    "weights": "rounded weights",
    "cache_bits": "an 8-bit KV cache",
    "cache_tokens": "a size of the KV cache in tokens",
    "draft_tokens": "guesses ahead",
    "draft_model": "guesses ahead",
    "device": "a choice of device",
}


class VllmFailedError(RuntimeError):
    """vLLM did not answer as it should; its own log on stderr says why."""


def check_options(config: ServeConfig) -> None:
    """Refuse what our engine can and vLLM, as it is started here, cannot.

    Raises:
        UsageError: such a field has another value than its default.
    """
    for name, what in UNKNOWN.items():
        if getattr(config, name) != ServeConfig.model_fields[name].default:
            raise UsageError(f"{name}: --engine vllm takes no {what}", hint=f"leave {name} out")


def command_of(directory: Path, config: ServeConfig, socket: Path) -> list[str]:
    """How vLLM is started. Its keys, addresses and limits are ours, so it gets none."""
    return [
        config.vllm_python or sys.executable,
        *("-c", LAUNCH),
        *("--model", str(directory), "--served-model-name", MODEL, "--uds", str(socket)),
        *("--dtype", DTYPES[config.precision], "--max-num-seqs", str(config.max_running)),
        *("--max-num-batched-tokens", str(config.step_tokens), "--enable-chunked-prefill"),
        "--enable-prefix-caching" if config.prefix_cache else "--no-enable-prefix-caching",
        *("--max-logprobs", str(max(config.max_logprobs, 1)), "--generation-config", "vllm"),
        *("--structured-outputs-config", json.dumps({"backend": "guidance", "disable_any_whitespace": True})),
        *("--disable-uvicorn-access-log", "--uvicorn-log-level", "warning"),
    ]


class VllmEngine:
    """The process and the requests that it has. Members are those of `llmctl.inference.engine.Engine`.

    Args:
        directory: a checkpoint, which is a Hugging Face directory.
        config: of the server.

    Raises:
        UsageError: vLLM is not installed, or cannot do what is asked for.
        InputError: it does not start with this checkpoint.
    """

    def __init__(self, directory: Path, config: ServeConfig) -> None:
        check_options(config)
        _check_installed(config.vllm_python or sys.executable)
        self.tokenizer = Tokenizer.open(directory)
        self.context = read_config(directory / CONFIG_FILE).config.context
        self.counts = Counts()
        self.running = self.waiting = 0
        self.cache_usage = 0.0
        self._forms = Forms(self.tokenizer)
        self._folder = tempfile.TemporaryDirectory(prefix="llmctl-vllm-")
        self._socket = Path(self._folder.name) / "socket"
        self._loop = asyncio.new_event_loop()
        self._process = subprocess.Popen(
            command_of(directory, config, self._socket),
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._loop.run_forever, name="llmctl-vllm", daemon=True)
        self._thread.start()
        try:
            self._wait()
        except BaseException:
            self.close()
            raise
        self._soon(self._scrape())

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def submit(self, request: Request, deliver: Deliver) -> Future[None]:
        """Send a request.

        Raises:
            UsageError: vLLM has no such setting.
            EngineClosedError: the process has ended.
        """
        if not self.alive:
            raise EngineClosedError("vLLM has ended")
        asked = asked_of_vllm(request, MODEL, self.tokenizer)
        return self._soon(self._answer(request, asked, deliver))

    def check_constraint(self, constraint: Constraint) -> None:
        """Compile it here too, so that what is wrong is said at once."""
        self._forms.matcher(constraint)

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        asyncio.run_coroutine_threadsafe(self._end_tasks(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._folder.cleanup()

    async def _end_tasks(self) -> None:
        """Cancel what is still on the loop, which tells whoever waits."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _soon(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _wait(self) -> None:
        """Wait until the process answers."""
        end = time.monotonic() + START_S
        while True:
            if self._process.poll() is not None:
                raise InputError("vLLM does not start with this checkpoint", hint="its own message is above")
            try:
                asyncio.run_coroutine_threadsafe(ask(self._socket, "/health"), self._loop).result(10)
            except (OSError, HttpFailure, TimeoutError):
                if time.monotonic() > end:
                    raise InputError(f"vLLM did not answer within {START_S:g} s", hint="its log is above") from None
                time.sleep(0.2)
            else:
                return

    async def _answer(self, request: Request, asked: dict[str, Any], deliver: Deliver) -> None:
        """Pass on the events of one answer; the last one, or an error, always comes."""
        answer = Answer(request, self.tokenizer, request.ends(self.tokenizer))
        try:
            async with contextlib.aclosing(stream(self._socket, "/v1/completions", asked)) as chunks:
                async for chunk in chunks:
                    event = answer.add(chunk)
                    if event is not None:
                        deliver(event)
                    if answer.done:  # by one of our stop strings, of which vLLM does not know
                        return
            deliver(VllmFailedError("vLLM's answer has no end"))
        except asyncio.CancelledError:
            deliver(Event((), "", "cancelled"))
        except Exception as error:  # noqa: BLE001 (whoever waits gets it)
            deliver(error)

    async def _scrape(self) -> None:
        """Take the engine's own figures over, for /metrics."""
        from prometheus_client.parser import text_string_to_metric_families

        while True:
            await asyncio.sleep(SCRAPE_S)
            try:
                text = await ask(self._socket, "/metrics")
            except (OSError, HttpFailure):
                continue
            found = {
                sample.name: sample.value
                for family in text_string_to_metric_families(text.decode())
                for sample in family.samples
                if family.name.startswith("vllm:")
            }
            self.running = int(found.get("vllm:num_requests_running", 0))
            self.waiting = int(found.get("vllm:num_requests_waiting", 0))
            self.cache_usage = found.get("vllm:kv_cache_usage_perc", 0.0)
            self.counts.prefix_queries = int(found.get("vllm:prefix_cache_queries_total", 0))
            self.counts.prefix_hits = int(found.get("vllm:prefix_cache_hits_total", 0))
            self.counts.preemptions = int(found.get("vllm:num_preemptions_total", 0))


def _check_installed(python: str) -> None:
    """Whether the interpreter has vLLM, without importing it."""
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        found = subprocess.run([python, "-c", look], capture_output=True, check=False, timeout=60).returncode == 0
    except OSError as error:
        raise UsageError(f"vllm_python: cannot run {python}: {error.strerror}", hint=INSTALL) from None
    if not found:
        raise UsageError(f"vLLM is not installed for {python}", hint=INSTALL)
