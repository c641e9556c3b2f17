"""Computing time to a target in held-out bits per byte: our best recipe beside one in nanoGPT's manner.

Both recipes have about two million parameters, the same corpus (Python's documentation), tokenizer, rows and held-out
documents, the same loop and the same measurement on all held-out rows; what stands under `pretrain` in
recipes/speedrun.yaml and recipes/speedrun-baseline.yaml differs. The target is what the baseline ends with. What counts
is `llmctl pretrain` as a process: its start, all steps, the measurement at the end.

    python bench/speedrun.py [--runs 3] [--store DIR]

Runs alternate. Wall time counts on a machine with nothing else to do, CPU time of all threads on a busy one.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llmctl.store.store import Store

RECIPES = Path(__file__).parents[1] / "recipes"
NAMES = ("speedrun-baseline", "speedrun")
SHARE = 1 / 3


def llmctl(*arguments: str) -> None:
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # threads that wait for one another compute nothing
    command = [sys.executable, "-m", "llmctl", *arguments]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr, env=environment)


def run(store: Path, name: str) -> tuple[float, float, float]:
    """(Wall seconds, CPU seconds, held-out bits per byte) of a recipe's last step; the others come from the cache."""
    recipe = str(RECIPES / f"{name}.yaml")
    settings = ["--store", str(store), "-q"]
    llmctl("run", recipe, "pretrain.steps=1", *settings)  # makes the rows
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    llmctl("run", recipe, *settings)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    totals = Store.open(store).resolve(f"{name}.pretrain").manifest.totals
    return wall, cpu, float(totals["heldout_bits_per_byte"])


def told(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--store", type=Path, help="where the artifacts go; a folder that is removed where left out")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in NAMES}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.runs):
            store = (options.store or Path(folder)) / str(number)  # a store of its own: nothing comes from the cache
            for name in NAMES:
                found[name].append(run(store, name))
    baseline, ours = (list(zip(*found[name], strict=True)) for name in NAMES)
    reached = max(ours[2]) <= min(baseline[2])
    for clock, place in (("CPU", 1), ("wall", 0)):
        share = [a / b for a, b in zip(ours[place], baseline[place], strict=True)]
        print(f"{clock} time of speedrun / speedrun-baseline: {told(share, 2)}; at most {SHARE:.2f} was aimed at")
    print(f"target {'reached' if reached else 'NOT reached'}")
    for name, (wall, cpu, bits) in zip(NAMES, (baseline, ours), strict=True):
        print(f"  {name:18} {told(list(cpu))} CPU s, {told(list(wall))} s; {told(list(bits), 4)} bits per byte")


if __name__ == "__main__":
    main()
