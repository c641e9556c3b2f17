"""Does a run that is killed again and again end as if nothing had happened?

Claim: after `kill -9` at random steps, again and again in one run, the same command goes on, and both the whole curve
and the published weights are bit for bit those of an uninterrupted run (CPU, same ranks), in a single process and on
two ranks at each ZeRO stage.

    python bench/kills.py [--kills 20] [--steps 200] [--settings "" "--nproc 2 --zero 2"] [--seed 0]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TIMES = ("tokens_per_s", "data_wait_s", "elapsed_s", "mfu", "peak_memory_bytes")
EVERY = ("", "--nproc 2 --zero 0", "--nproc 2 --zero 1", "--nproc 2 --zero 2", "--nproc 2 --zero 3")
FIXED = (
    "--model",
    "nano",
    "batch_rows=4",
    "threads=1",
    "device=cpu",
    "checkpoint_every_steps=3",
    "eval_every_steps=50",
)


def command(store: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "llmctl", *words, "--store", str(store), "-q"]


def pack_rows(store: Path) -> None:
    pages = store.parent / "pages.jsonl"
    rows = ({"id": str(n), "text": f"page {n} says {n * n} and {n**3 % 97} and no more"} for n in range(400))
    pages.write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = (
        ("collect", str(pages), "--name", "d"),
        ("tokenize", "d", "--vocab-size", "300"),
        ("pack", "d.tokenize", "--seq-len", "64"),
    )
    for words in steps:
        subprocess.run(command(store, *words), check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def last_step(store: Path) -> int:
    """The last step that a run has logged, its first of all; 0 where there is none."""
    for path in store.glob("d.pretrain/*/metrics.jsonl"):
        lines = path.read_bytes().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["step"]) if lines else 0
    return 0


def kill_at(words: list[str], store: Path, step: int) -> bool:
    """Start, and SIGKILL once a step is logged; False where the run ended before."""
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if last_step(store) >= step:
            process.kill()
            process.wait()
            return True
        time.sleep(0.005)
    return False


def outcome(store: Path) -> tuple[list[dict[str, float]], str]:
    """The curve without times, and the digest of the weights."""
    (path,) = store.glob("d.pretrain/*/metrics.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    curve = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
    return curve, hashlib.sha256((path.parent / "data" / "model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--settings", nargs="*", default=EVERY)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for settings in options.settings:
        with tempfile.TemporaryDirectory() as directory:
            whole, killed = Path(directory, "whole"), Path(directory, "killed")
            pack_rows(whole)
            shutil.copytree(whole, killed)
            words = ("pretrain", "d.pack", *FIXED, "--steps", str(options.steps), *settings.split())
            subprocess.run(command(whole, *words), check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            targets = sorted(random.Random(options.seed).sample(range(1, options.steps), options.kills))
            begun = time.perf_counter()
            hit = sum(kill_at(command(killed, *words), killed, step) for step in targets)
            subprocess.run(command(killed, *words), check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            same = outcome(whole) == outcome(killed)
            spent = time.perf_counter() - begun
            verdict = "bitwise equal" if same else "DIFFERENT"
            name = settings or "one process"
            print(f"{name}: killed {hit} times of {options.kills}, {verdict}, {spent:.0f} s")
            if not same:
                sys.exit(1)


if __name__ == "__main__":
    main()
