"""The server under many clients, clients that leave, streams beside whole answers, and bodies made to hurt it.

    python bench/serve_stress.py [--requests 1000 --clients 64 --disconnects 500 --twins 1000]

The server is a process of its own over a tiny model of random weights. What the clients do is tests/serve/load.py.
Ends with 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.evals.tiny import write_checkpoint
from tests.serve.load import Mixed, client, disconnects, idle, twins

ROOT = str(Path(__file__).parents[1])
MODEL, KEY, CONTEXT = "tiny", "stress-key", 4096
SERVER = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from llmctl.config.serve import ServeConfig
from llmctl.serve.server import serve
bounds = {"max_waiting": 256, "cache_tokens": 16384}
if sys.argv[2]:
    bounds["header_timeout_s"] = 1.0
config = ServeConfig(port=0, device="cpu", model_name="tiny", api_key_env=sys.argv[2], **bounds)
serve(Path(sys.argv[1]), config, lambda url: print(url, flush=True))
"""
WARM_ROUNDS, ROUNDS, ROUND = 4, 5, 250  # of so many requests
MOST_GROWTH_MB = 4.0  # of the memory after the first rounds, in all later ones
CHUNKED = b"\r\nTransfer-Encoding: chunked"


@contextlib.contextmanager
def server(checkpoint: Path, *, keyed: bool = False) -> Iterator[tuple[str, psutil.Process]]:
    """The URL and the process of a server, which must end well on SIGTERM."""
    environment = {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", "STRESS_KEY": KEY}
    command = [sys.executable, "-c", SERVER, str(checkpoint), "STRESS_KEY" if keyed else ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), psutil.Process(process.pid)
        finally:
            process.terminate()
        assert process.wait(60) == 0


def megabytes(process: psutil.Process) -> float:
    return process.memory_info().rss / 1e6


async def crowd(url: str, process: psutil.Process, requests: int, clients: int) -> list[str]:
    """Mixed requests; print what came of them and return what is wrong."""
    async with client(url) as http:
        for seed in range(WARM_ROUNDS):  # until every page of the cache and every thread has been used
            await around(http, seed, clients)
        before = megabytes(process)
        mixed = Mixed(http, MODEL, CONTEXT, seed=WARM_ROUNDS)
        await mixed.learn(100)
        began = time.monotonic()
        await mixed.run(requests, clients)
        took = time.monotonic() - began
        after = await idle(http)
        slowest = 1000 * max(mixed.counted.health)
        print(f"{requests} requests of {clients} clients in {took:.0f} s: {len(mixed.counted.wrong)} wrong answers")
        print(f"  /health {len(mixed.counted.health)} times, the slowest {slowest:.0f} ms")
        rounds = [megabytes(process)]
        for seed in range(WARM_ROUNDS + 1, WARM_ROUNDS + ROUNDS):
            await around(http, seed, clients)
            rounds.append(megabytes(process))
        print(f"  memory {before:.0f} MB before, then {', '.join(f'{size:.0f}' for size in rounds)} MB")
        print(
            f"  cache in use {after['vllm:kv_cache_usage_perc']:g}, preemptions {after['vllm:num_preemptions_total']:g}"
        )
        for name, value in sorted(mixed.counted.values.items()):
            print(f"  {name}: clients {value}, server {mixed.moved[name]:g}")
        left = ["cache blocks are in use"] if after["vllm:kv_cache_usage_perc"] else []
        grown = max(rounds) - before
        more = [f"memory grew by {grown:.0f} MB, from {before:.0f}"] if grown > MOST_GROWTH_MB else []
        return mixed.counted.wrong + mixed.unequal() + left + more


async def around(http: httpx.AsyncClient, seed: int, clients: int) -> None:
    """Other mixed requests than those that are counted."""
    mixed = Mixed(http, MODEL, CONTEXT, seed=seed)
    await mixed.learn(20)
    await mixed.run(ROUND, clients)


async def leave(url: str, count: int) -> list[str]:
    """Leave at random points."""
    async with client(url) as http:
        waits = sorted(await disconnects(http, MODEL, CONTEXT, count, seed=2))
    median, late = waits[len(waits) // 2], waits[int(0.99 * len(waits))]
    print(
        f"{count} disconnects: place free after {1000 * median:.0f} ms, p99 {1000 * late:.0f}, "
        f"most {1000 * waits[-1]:.0f}"
    )
    return [f"a place was taken for {waits[-1]:.2f} s"] if waits[-1] > 0.5 else []


async def pairs(url: str, count: int) -> list[str]:
    """Whole and streamed."""
    async with client(url) as http:
        faults, odd = await twins(http, MODEL, count, clients=8, seed=3)
    print(
        f"{count} random requests streamed and whole: {len(faults)} differ "
        f"({odd} with more than ASCII, or ended by a stop)"
    )
    return faults


def request(path: str, body: bytes, *, key: str = KEY, headers: bytes = b"") -> bytes:
    """A request in bytes, with the length of its body unless `headers` say otherwise."""
    length = b"" if headers else f"\r\nContent-Length: {len(body)}".encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json".encode()
    return head + length + headers + b"\r\n\r\n" + body


def hostile() -> dict[str, tuple[bytes, int]]:
    """Bytes made to hurt, and the status that they must get."""

    def asked(**more: object) -> bytes:
        return json.dumps({"model": MODEL, "prompt": "a", **more}).encode()

    big = b"x" * (1 << 20)
    chunk = f"{len(big):x}\r\n".encode() + big + b"\r\n"
    text, chat = "/v1/completions", "/v1/chat/completions"
    deep = b'{"model": "tiny", "prompt": "a", "structured_outputs": {"json": ' + b'{"a":' * 900 + b"1" + b"}" * 902
    schema = b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "response_format": ' + (
        b'{"type": "json_schema", "json_schema": {"schema": ' + b'{"not":' * 400 + b"{}" + b"}" * 403
    )
    return {
        "100 MB body, announced": (request(text, b"", headers=b"\r\nContent-Length: 104857600"), 413),
        "100 MB body, in chunks": (request(text, b"", headers=CHUNKED) + chunk * 100, 413),
        "4 MB body of one string": (request(text, asked(prompt="a" * 4_000_000)), 400),
        "prompt beyond the context, text": (request(text, asked(prompt="the list " * 4000)), 400),
        "prompt beyond the context, ids": (request(text, asked(prompt=[50] * 5000)), 400),
        "n = 10^6": (request(text, asked(n=10**6)), 400),
        "100,000 prompts": (request(text, asked(prompt=["a"] * 100_000)), 400),
        "max_tokens = 10^9": (request(text, asked(max_tokens=10**9)), 400),
        "JSON nested 1,000,000 deep": (request(text, b"[" * 1_000_000), 400),
        "JSON nested 900 deep in a field": (request(text, deep), 400),
        "schema nested 400 deep": (request(chat, schema), 400),
        "number of 1,000,000 digits": (request(text, b'{"n": ' + b"9" * 1_000_000 + b"}"), 400),
        "temperature NaN": (request(text, b'{"model": "tiny", "prompt": "a", "temperature": NaN}'), 400),
        "temperature 1e999": (request(text, b'{"model": "tiny", "prompt": "a", "temperature": 1e999}'), 400),
        "regex (a{1,9999}){1,9999}, which is legal": (
            request(text, asked(structured_outputs={"regex": "(a{1,9999}){1,9999}"})),
            200,
        ),
        "wrong key": (request(text, asked(), key="wrong"), 401),
        "headers of 1 MB": (b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (1 << 20) + b"\r\n\r\n", 400),
        "headers that stop coming (bound 1 s)": (b"GET /health HTTP/1.1\r\nHost: ", 408),
        "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),
    }


def speak(url: str, said: bytes) -> tuple[int, float]:
    """The status that comes back, and seconds until it came."""
    where = httpx.URL(url)
    with socket.create_connection((where.host, where.port or 80), timeout=60) as raw:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):  # a refused body need not be read to its end
            raw.sendall(said)
        answer = raw.recv(4096)
    return int(answer.split(b" ", 2)[1] or 0) if answer else 0, time.monotonic() - began


def hurt(url: str, process: psutil.Process) -> list[str]:
    """One row for each; what was answered otherwise, or grew."""
    wrong = []
    speak(url, request("/v1/completions", b"{}"))
    before = megabytes(process)
    print("| | status | ms (best of 3) | memory MB |\n|---|---|---|---|")
    for name, (said, status) in hostile().items():
        answers = [speak(url, said) for _ in range(3)]
        best = min(seconds for _, seconds in answers)
        print(f"| {name} | {answers[0][0]} | {1000 * best:.0f} | {megabytes(process) - before:+.0f} |", flush=True)
        if {answer for answer, _ in answers} != {status}:
            wrong.append(f"{name}: {answers}, not {status}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--disconnects", type=int, default=500)
    parser.add_argument("--twins", type=int, default=1000)
    given = parser.parse_args()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder), context=CONTEXT)
        with server(checkpoint) as (url, process):
            wrong += asyncio.run(crowd(url, process, given.requests, given.clients))
            wrong += asyncio.run(leave(url, given.disconnects))
            wrong += asyncio.run(pairs(url, given.twins))
        with server(checkpoint, keyed=True) as (url, process):
            wrong += hurt(url, process)
    for fault in wrong:
        print(f"WRONG: {fault}"[:2000])
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
