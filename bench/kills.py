"""Does a run that is killed again and again end as if nothing had happened?

Claim: after `kill -9` at random steps, again and again in one run, the same command goes on, and both the whole curve
and the published weights are bit for bit those of an uninterrupted run (CPU, same ranks), in a single process and on
two ranks at each ZeRO stage. With ranks the victim is drawn too, the command itself or one rank of it, and whatever
the kill leaves over must be gone within a minute.

    python bench/kills.py [--kills 20] [--steps 200] [--settings "" "--nproc 2 --zero 2"] [--seed 0]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TIMES = ("tokens_per_s", "data_wait_s", "elapsed_s", "mfu", "peak_memory_bytes")
EVERY = ("", "--nproc 2 --zero 0", "--nproc 2 --zero 1", "--nproc 2 --zero 2", "--nproc 2 --zero 3")
LONGEST_END_S = 60
FIXED = (
    "--model",
    "nano",
    "model.width=128",  # with this, a matrix of more than 100,000 elements, which ZeRO 3 shards
    "model.ffn_width=1024",
    "model.heads=4",
    "model.layers=1",
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


def processes_of(store: Path) -> dict[int, bool]:
    """Ids of the processes whose command lines name the store, and whether each is a rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if any(word.startswith(os.fsencode(store)) for word in words):
            found[int(path.parent.name)] = any(word.startswith(b"--local_rank=") for word in words)
    return found


def kill_at(words: list[str], store: Path, step: int, drawn: random.Random) -> tuple[str, float]:
    """Start, SIGKILL the command or one of its ranks once a step is logged, and wait until nothing of it is left.

    Returns:
        The victim, empty where the run ended before; and seconds from the kill to the end of the last process.
    """
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while last_step(store) < step:
        if process.poll() is not None:
            return "", 0.0
        time.sleep(0.01)
    ranks = sorted(number for number, is_rank in processes_of(store).items() if is_rank)
    victim = drawn.choice([process.pid, *ranks])
    begun = time.perf_counter()
    os.kill(victim, signal.SIGKILL)
    process.wait(LONGEST_END_S)
    while processes_of(store):
        if time.perf_counter() - begun > LONGEST_END_S:
            raise SystemExit(f"still there {LONGEST_END_S} s after the kill: {processes_of(store)}")
        time.sleep(0.05)
    return "the command" if victim == process.pid else "a rank", time.perf_counter() - begun


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
            drawn = random.Random(options.seed)
            kills = [kill_at(command(killed, *words), killed, step, drawn) for step in targets]
            victims = Counter(victim for victim, _ in kills if victim)
            subprocess.run(command(killed, *words), check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            same = outcome(whole) == outcome(killed)
            spent = time.perf_counter() - begun
            verdict = "bitwise equal" if same else "DIFFERENT"
            name = settings or "one process"
            parts = ", ".join(f"{victim} {count} times" for victim, count in sorted(victims.items()))
            longest = max(seconds for _, seconds in kills)
            print(
                f"{name}: killed {victims.total()} times of {options.kills} ({parts}), all of it gone within "
                f"{longest:.1f} s, {verdict}, {spent:.0f} s",
                flush=True,
            )
            if not same:
                sys.exit(1)


if __name__ == "__main__":
    main()
