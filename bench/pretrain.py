"""How fast `llmctl pretrain --model tiny` trains here, in fp32 and bf16.

Claim: tokens/s of the whole loop (loading, forward, backward, update, logging), padding left out, first
steps left out. Each run is a process of its own on the same packed rows; runs alternate between the
precisions, so that a machine whose speed drifts treats both alike.

    python bench/pretrain.py [--runs 5] [--steps 60] [--batch-rows 16] [--model tiny]

A CPU without bf16 instructions needs minutes for few steps in bf16: ask for fewer there.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WARM_STEPS = 3


def llmctl(store: Path, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "llmctl", *arguments, "--store", str(store)], check=True, stdin=subprocess.DEVNULL
    )


def pack_rows(store: Path) -> None:
    """Collect → pack, each stage by name."""
    llmctl(store, "collect", "python-docs", "-q")
    llmctl(store, "clean", "python-docs", "-q")
    llmctl(store, "dedup", "python-docs.clean", "-q")
    llmctl(store, "tokenize", "python-docs.dedup", "--vocab-size", "4096", "-q")
    llmctl(store, "pack", "python-docs.tokenize", "--seq-len", "256", "-q")


def measure(store: Path, options: argparse.Namespace, precision: str, run: int) -> float:
    """Median tokens/s over the steps after the first few of one run."""
    name = f"{precision}-{run}"
    size = ("--model", options.model, "--steps", str(options.steps), "--batch-rows", str(options.batch_rows))
    settings = (*size, "--precision", precision, "--name", name, "--force", "-q")
    llmctl(store, "pretrain", "python-docs.pack", *settings, "eval_every_steps=0", "checkpoint_every_steps=0")
    (metrics,) = (store / name).glob("*/metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return statistics.median(row["tokens_per_s"] for row in rows[WARM_STEPS:] if "tokens_per_s" in row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-rows", type=int, default=16)
    parser.add_argument("--model", default="tiny")
    options = parser.parse_args()
    speeds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    with tempfile.TemporaryDirectory() as directory:
        store = Path(directory) / "artifacts"
        pack_rows(store)
        for run in range(options.runs):
            for precision, seen in speeds.items():
                seen.append(measure(store, options, precision, run))
    size = f"{options.model}, {options.batch_rows} rows of 256 a step, {options.runs} runs of {options.steps} steps"
    print(f"{platform.machine()}, {size}")
    for precision, seen in speeds.items():
        print(f"{precision}: median {statistics.median(seen):,.0f} tokens/s, {min(seen):,.0f} to {max(seen):,.0f}")
    print(f"bf16 / fp32: {statistics.median(b / a for a, b in zip(*speeds.values(), strict=True)):.2f}")


if __name__ == "__main__":
    main()
