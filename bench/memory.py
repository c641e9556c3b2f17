"""Memory of collect → clean → dedup on a corpus far larger than it, in few large files and in many small ones.

Claim: the three stages together stay under 2 GB, however large the files. Peak is the proportional set size of the
command and its workers, summed, sampled five times a second. The corpus is what bench/corpus.py built, repeated
with every fifth word marked by the number of the repetition, so that no repetition is a duplicate of another.

    python bench/memory.py WORK [--gigabytes 5] [--files 4] [--stages collect clean dedup]

Without `clean`, dedup takes what collect made.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from llmctl.data.tables import read_parquet

WORD = re.compile(r"\w+")
POLL_S = 0.2


def texts(work: Path) -> Iterator[str]:
    """The corpus again and again, each time marked otherwise."""
    number = 0
    while True:
        for path in sorted((work / "documents").glob("*.parquet")):
            for batch in read_parquet(path, ["text"]):
                for text in batch.column("text").to_pylist():
                    words = text.split(" ")
                    words[::5] = [f"{word}{number}" for word in words[::5]]
                    yield " ".join(words)
        number += 1


def write_corpus(work: Path, folder: Path, gigabytes: float, files: int) -> None:
    """`files` JSON Lines files of equal size."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source = texts(work)
    for number in range(files):
        written = 0
        with open(folder / f"{number:05d}.jsonl", "w", encoding="utf-8") as handle:
            while written < gigabytes * 1e9 / files:
                written += handle.write(json.dumps({"text": next(source)}, ensure_ascii=False) + "\n")


def proportional_bytes(root: int) -> tuple[int, int]:
    """Proportional set size of a process and all its descendants, and the share of it that no file backs."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    total = own = 0
    for process in parents:
        above: int | None = process
        while above not in (None, 0, root):
            above = parents.get(above)
        if above != root:
            continue
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        sizes = {line.split()[0]: int(line.split()[1]) << 10 for line in rollup.splitlines()[1:]}
        total += sizes["Pss:"]
        own += sizes.get("Pss_Anon:", 0)
    return total, own


def measured(store: Path, *words: str) -> tuple[float, int, int]:
    """Run one command: seconds, and the peaks of `proportional_bytes`; fails as it fails."""
    command = [sys.executable, "-m", "llmctl", *words, "--store", str(store), "-q"]
    begun, peak, own = time.monotonic(), 0, 0
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        now = proportional_bytes(process.pid)
        peak, own = max(peak, now[0]), max(own, now[1])
        time.sleep(POLL_S)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    return time.monotonic() - begun, peak, own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--gigabytes", type=float, default=5)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--stages", nargs="+", default=["collect", "clean", "dedup"])
    options = parser.parse_args()
    folder, store = options.work / "large", options.work / "large-store"
    shutil.rmtree(store, ignore_errors=True)
    write_corpus(options.work, folder, options.gigabytes, options.files)
    commands = {
        "collect": ("collect", str(folder), "--name", "large"),
        "clean": ("clean", "large", "quality.min_words=5", "quality.min_stop_words=0"),
        "dedup": ("dedup", "large.clean" if "clean" in options.stages else "large"),
    }
    print(f"{options.gigabytes} GB in {options.files} files")
    for stage in options.stages:
        seconds, peak, own = measured(store, *commands[stage])
        rate = options.gigabytes * 1e3 / seconds
        peaks = f"peak {peak / 1e6:,.0f} MB, {own / 1e6:,.0f} MB without mapped files"
        print(f"{stage}: {seconds:,.0f} s, {rate:,.1f} MB/s, {peaks}", flush=True)
    shutil.rmtree(store)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
