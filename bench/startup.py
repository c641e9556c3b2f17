"""How long do the data stages take on three pages of docs/, where starting is nearly all of it?

Claim: under 1.5 s of wall time each, the command's own start included.

    python bench/startup.py [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAGES = [str(path) for path in sorted((Path(__file__).parents[1] / "docs").glob("*.md"))[1:4]]
STAGES = {
    "collect": ["collect", *PAGES, "--name", "pages"],
    "clean": ["clean", "pages", "quality.enabled=false", "--name", "clean"],
    "dedup": ["dedup", "pages", "--name", "dedup"],
    "dedup near=false": ["dedup", "pages", "near=false", "--name", "exact"],
    "decontaminate": ["decontaminate", "pages", "--against", "against.jsonl", "--name", "apart"],
    "mix": ["mix", "pages", "--name", "mix"],
    "stats": ["stats", "pages"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    seconds: dict[str, list[float]] = {name: [] for name in STAGES}
    with tempfile.TemporaryDirectory() as folder:
        asked = {"text": "What is asked in an exam about this page?"}
        Path(folder, "against.jsonl").write_text(json.dumps(asked) + "\n")
        for turn in range(runs + 1):  # the first turn fills the file cache
            for name, words in STAGES.items():
                command = [sys.executable, "-m", "llmctl", *words]
                if words[0] != "stats":
                    command.append("--force")
                begun = time.perf_counter()
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(f"{name}: exit {done.returncode}\n{done.stderr}")
                if turn:
                    seconds[name].append(time.perf_counter() - begun)
    for name, seen in seconds.items():
        print(f"{name}: {statistics.median(seen):.2f} s ({min(seen):.2f} to {max(seen):.2f})")


if __name__ == "__main__":
    main()
