"""Output tokens per second and time to first token over HTTP, beside transformers, llama.cpp and vLLM.

    python bench/serve.py smol --store artifacts --precision bf16 --gguf smol-bf16.gguf \\
        --vllm-python peers/bin/python --llama-python peers/bin/python

One model, one weight width, one machine, one run. Every system gets the same texts of so many tokens, greedy, and says
as many tokens whatever they are. transformers has no server: its row is `generate` of one static batch. The server of
llama-cpp-python takes one request at a time, so more clients wait for one another. A peer that is not given, or
fails, is named. CPU time is that of the server's processes for each token of
output: where the machine has other work it says more than wall time, with `--threads 1` above all, as threads that wait
for one another count as busy. `--runs` repeats everything; the best of each is printed, with the range.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

END_IDS = (0, 2)  # of SmolLM2: an answer must not end early where nothing but a bias prevents it
LEARNED = 134_515_008


@dataclass
class Load:
    """What is asked of a system at once."""

    name: str
    prompts: list[str]
    output: int


@dataclass
class Figures:
    """What one load gave."""

    tokens: int
    seconds: float
    first: list[float] = field(default_factory=list)  # seconds to each first token
    cpu: float = 0.0


def texts(encode: Callable[[str], list[int]], words: list[str], lengths: list[int], seed: int) -> list[str]:
    """Texts of exactly so many tokens, of words that are one token each."""
    drawn, made = random.Random(seed), []
    for length in lengths:
        text = "".join(drawn.choice(words) for _ in range(length))
        assert len(encode(text)) == length
        made.append(text)
    return made


def loads_of(given: argparse.Namespace, directory: Path) -> list[Load]:
    """The loads in the order in which they run."""
    from llmctl.tokens.tokenizer import Tokenizer

    tokenizer = Tokenizer.open(directory)
    pieces = [tokenizer.piece_bytes(index) for index in range(5000, 20000)]
    words = [piece.decode() for piece in pieces if re.fullmatch(rb" [a-z]{4,}", piece)]
    words = [word for word in words if len(tokenizer.encode(word * 2)) == 2]
    made = [
        Load(f"{clients}", texts(tokenizer.encode, words, [given.prompt] * clients, clients), given.output)
        for clients in given.clients
    ]
    for clients in given.clients if given.shared else []:
        (common,) = texts(tokenizer.encode, words, [given.shared], 1000 + clients)
        own = texts(tokenizer.encode, words, [given.prompt] * clients, 2000 + clients)
        made.append(Load(f"{clients} shared", [common + text for text in own], given.output))
    return made


class Server:
    """A server of the OpenAI protocol in a process of its own."""

    def __init__(self, command: list[str], port: int, body: dict[str, Any], environment: dict[str, str]) -> None:
        self.port, self.body = port, body
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `close`)
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=self.log, env={**os.environ, **environment}, start_new_session=True
        )

    def wait(self, seconds: float) -> None:
        """Until it answers."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            try:
                self.complete("Hello", 2)
            except (OSError, http.client.HTTPException):
                time.sleep(0.5)
            else:
                return
        self.log.seek(0)
        raise RuntimeError(f"it does not answer: {self.log.read()[-800:]}")

    def complete(self, prompt: str, output: int) -> tuple[int, float]:
        """One streamed answer: its tokens, and seconds to the first."""
        began, first, count = time.perf_counter(), 0.0, 0
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        body = {**self.body, "prompt": prompt, "max_tokens": output, "temperature": 0, "stream": True}
        link.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = link.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {answer.read()[:300]!r}")
        for line in answer:
            if line.startswith(b"data: {") and (choices := json.loads(line[6:])["choices"]):
                first = first or time.perf_counter() - began
                count += choices[0].get("finish_reason") is None or bool(choices[0]["text"])
        link.close()
        return count, first

    def run(self, load: Load) -> Figures:
        """All prompts at once, one client each."""
        answers: list[tuple[int, float]] = []
        threads = [
            threading.Thread(target=lambda text=text: answers.append(self.complete(text, load.output)))
            for text in load.prompts
        ]
        cpu, began = self.cpu(), time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
        # A token that is no whole character makes no event in some servers, so tokens are those that were asked for.
        if any(count < load.output // 2 for count, _ in answers):
            raise RuntimeError(f"answers ended early, after {sorted(count for count, _ in answers)} tokens")
        if len(answers) < len(threads):
            raise RuntimeError(f"{len(threads) - len(answers)} of {len(threads)} requests failed")
        return Figures(load.output * len(answers), seconds, [first for _, first in answers], self.cpu() - cpu)

    def cpu(self) -> float:
        """Seconds of the server's processes."""
        total = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self.process.pid:  # session
                total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it and what it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(20)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self.log.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def servers(given: argparse.Namespace, directory: Path) -> dict[str, Callable[[], Server] | str]:
    """How each is started, or why it is not."""
    port, width, threads = free_port(), given.precision, str(given.threads)
    most, room = max(given.clients), 256 + given.shared + given.prompt + given.output
    ours = [sys.executable, "-m", "llmctl", "serve", given.reference, "--store", given.store, "--port", str(port)]
    ours += ["--precision", width, "--model-name", "m", "-q", f"max_running={most}"]
    llama = [given.llama_python, "-m", "llama_cpp.server", "--model", given.gguf, "--port", str(port)]
    llama += [
        "--interrupt_requests",
        "False",
        "--n_ctx",
        str(room),
        "--n_threads",
        threads,
        "--n_threads_batch",
        threads,
    ]
    kind = {"fp32": "float32", "bf16": "bfloat16"}[width]
    vllm = [given.vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(directory), "--dtype", kind]
    vllm += ["--port", str(port), "--served-model-name", "m", "--max-model-len", str(room), "--max-num-seqs", str(most)]
    bias = {str(index): -100 for index in END_IDS}
    own = {"OMP_NUM_THREADS": threads}
    plain = {**own, "PYTHONPATH": ""}
    cache = {**plain, "VLLM_CPU_KVCACHE_SPACE": "4", "HF_HUB_OFFLINE": "1"}
    cache["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, range(given.threads)))
    return {
        "llmctl": lambda: Server(ours, port, {"model": "m", "ignore_eos": True}, own),
        "llama.cpp": (lambda: Server(llama, port, {"model": "m", "logit_bias": bias}, plain))
        if given.llama_python and given.gguf
        else "no --llama-python and --gguf",
        "vllm": (lambda: Server(vllm, port, {"model": "m", "ignore_eos": True}, cache))
        if given.vllm_python
        else "no --vllm-python",
    }


def through(system: Callable[[], Server], loads: list[Load]) -> Iterator[tuple[str, Figures]]:
    """Start a server, run all loads, end it."""
    server = system()
    try:
        server.wait(520)
        server.complete(loads[0].prompts[-1][:200], 8)
        for load in loads:
            yield load.name, server.run(load)
    finally:
        server.close()


def static(given: argparse.Namespace, directory: Path, loads: list[Load]) -> Iterator[tuple[str, Figures]]:
    """The generate of transformers, in a process of its own."""
    told = {"directory": str(directory), "precision": given.precision, "loads": [vars(load) for load in loads]}
    command = [given.transformers_python or sys.executable, __file__, "--static"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
    done = subprocess.run(command, input=json.dumps(told), env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    for line in done.stdout.splitlines():
        name, figures = json.loads(line)
        yield name, Figures(**figures)


def run_static() -> None:
    """The other side of `static`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    told = json.load(sys.stdin)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[told["precision"]]
    model = AutoModelForCausalLM.from_pretrained(told["directory"], dtype=kind)
    reader = AutoTokenizer.from_pretrained(told["directory"])
    model.generation_config.eos_token_id = None
    for load in told["loads"]:
        ids = torch.tensor(reader(load["prompts"])["input_ids"])
        mask = torch.ones_like(ids)
        seconds = []
        for most in (1, load["output"]):
            cpu, began = time.process_time(), time.perf_counter()
            model.generate(ids, attention_mask=mask, max_new_tokens=most, do_sample=False, pad_token_id=0)
            seconds.append(time.perf_counter() - began)
        cpu = time.process_time() - cpu
        figures = Figures(load["output"] * len(ids), seconds[1], [seconds[0]] * len(ids), cpu)
        print(json.dumps([load["name"], vars(figures)]), flush=True)


def product_rate(kind: Any) -> float:
    """Operations per second of a product of two square matrices, the best of three."""
    import torch

    square = torch.ones(1024, 1024, dtype=kind)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        square @ square
        best = min(best, time.perf_counter() - began)
    return float(2 * 1024**3 / best)


def limits(given: argparse.Namespace) -> dict[str, float]:
    """Output tokens per second that reading the weights and computing with them allow: the lower of the two."""
    import torch
    from engine import DTYPES, bandwidth

    kind = DTYPES[given.precision]
    torch.set_num_threads(given.threads)
    # Where the processor has no products of bfloat16, systems make floats of them, and are bound by those.
    rates = {name: product_rate(DTYPES[name]) for name in {"fp32", given.precision}}
    speed, rate = bandwidth(), max(rates.values())
    each = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in sorted(rates.items()))
    print(f"memory {speed / 1e9:.1f} GB/s, products {each}")
    print(f"{given.threads} threads of each, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    found = {}
    for clients in given.clients:
        reading, computing = LEARNED * kind.itemsize / speed, 2 * LEARNED * clients / rate
        found[str(clients)] = clients / max(reading, computing)
    return found


def main() -> None:
    if sys.argv[1:] == ["--static"]:
        run_static()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", help="of the checkpoint")
    parser.add_argument("--store", default="artifacts")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--gguf", default="", help="the same model for llama.cpp, in the same precision")
    parser.add_argument("--llama-python", default="")
    parser.add_argument("--vllm-python", default="")
    parser.add_argument("--transformers-python", default="")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument(
        "--shared", type=int, default=1000, help="tokens that all prompts of a load begin with; 0: none"
    )
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each system")
    parser.add_argument("--only", nargs="+", help="systems to run")
    given = parser.parse_args()

    from llmctl.store.store import Store

    directory = Store.open(Path(given.store)).resolve(given.reference).data
    loads, bounds = loads_of(given, directory), limits(given)
    systems: dict[str, Any] = {**servers(given, directory), "transformers": None}
    found: dict[tuple[str, str], list[Figures]] = {}
    for _ in range(given.runs):
        for name, system in systems.items():
            if isinstance(system, str) or (given.only and name not in given.only):
                print(f"{name}: not run: {system if isinstance(system, str) else 'not among --only'}")
                continue
            try:
                for load, figures in through(system, loads) if system else static(given, directory, loads):
                    found.setdefault((load, name), []).append(figures)
                    print(f"  {name} {load}: {figures.tokens / figures.seconds:.1f}", file=sys.stderr, flush=True)
            except (RuntimeError, OSError) as error:
                print(f"{name}: failed: {error}")
    report(loads, bounds, found)


def report(loads: list[Load], bounds: dict[str, float], found: dict[tuple[str, str], list[Figures]]) -> None:
    """One line for each load and system."""
    print(f"{'clients':10} {'system':13} {'tokens/s':>9} {'(range)':>15} {'first token s':>14} {'CPU ms/token':>13}")
    for load in loads:
        for (name, system), runs in found.items():
            if name == load.name:
                rates = sorted(run.tokens / run.seconds for run in runs)
                first = min(sum(run.first) / len(run.first) for run in runs)
                cpu = min(run.cpu / run.tokens for run in runs) * 1e3
                spread = f"({rates[0]:.0f} to {rates[-1]:.0f})"
                print(f"{name:10} {system:13} {rates[-1]:9.1f} {spread:>15} {first:14.2f} {cpu:13.2f}")
        if load.name in bounds:
            print(f"{load.name:10} {'limit':13} {bounds[load.name]:9.1f}")


if __name__ == "__main__":
    main()
