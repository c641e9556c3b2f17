"""From the start of `llmctl serve` to the first answer: seconds of wall and of CPU time.

    python bench/first_answer.py smol --store artifacts --runs 5

A question of one short sentence, one token of answer, so that what is measured is the start. The files are in the page
cache from the second run on; the first one is not counted. Beside it, what `import torch` alone takes here: no start
can be quicker. It measures the llmctl of the interpreter that runs it, so with an installed one run it elsewhere than
in the repository. Its modules are compiled first, as an installer does: where PYTHONDONTWRITEBYTECODE is set every
start would do so, which takes 0.4 s.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import llmctl

QUESTION = {
    "model": "first",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 1,
}


def start(command: list[str]) -> tuple[float, float, float]:
    """Seconds until the server says that it listens, until it has answered, and of CPU time until then."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            assert server.stdout is not None
            said = ""
            while not (found := re.search(r"http://\S+/v1", said)):
                line = server.stdout.readline()
                assert line, f"the server ended: {said}"
                said += line
            listening = time.perf_counter() - began
            ask(f"{found[0]}/chat/completions")
            return listening, time.perf_counter() - began, cpu_seconds(server.pid)
        finally:
            server.send_signal(signal.SIGTERM)


def import_torch() -> float:
    """Seconds that an interpreter needs to start, import torch and end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - began


def ask(url: str) -> None:
    """The question, and its answer read."""
    body = json.dumps(QUESTION).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 (our own server)
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        assert json.load(answer)["choices"]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process that still runs."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", help="of a checkpoint")
    parser.add_argument("--store", default="artifacts")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("override", nargs="*", help="further settings of `llmctl serve`")
    given = parser.parse_args()
    compileall.compile_dir(Path(llmctl.__file__).parent, quiet=1)
    command = [sys.executable, "-m", "llmctl", "serve", given.reference, "--store", given.store, "--port", "0"]
    command += ["--model-name", QUESTION["model"]]
    runs = [(*start([*command, *given.override]), import_torch()) for _ in range(given.runs + 1)][1:]
    names = ("listening after", "answered after", "CPU time", "torch alone")
    for name, seconds in zip(names, zip(*runs, strict=True), strict=True):
        middle = statistics.median(seconds)
        print(f"{name:16} {middle:5.2f} s, median of {len(seconds)} ({min(seconds):.2f} to {max(seconds):.2f})")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
