"""What the sandbox costs a problem, and what a thousand runs leave behind.

    python bench/sandbox.py --problems HumanEval.jsonl.gz --runs 1000

The overhead is the time of a whole check, both processes made and gone, less the time that the same program and tests
take in this process; the median over HumanEval's canonical solutions, one at a time. Then the same checks on all
processors, as an evaluation runs them. Last, `--runs` checks of a program that leaves what it can: files, links, a
process that detaches itself; afterwards the processes, mounts, descriptors and temporary files are those of before.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from llmctl.evals.sandbox.box import Sandbox
from llmctl.evals.sandbox.verdict import Limits, Verdict

LITTER = """
import os
open("/tmp/left", "w").write("x" * 9999)
os.symlink("left", "/tmp/link")
if os.fork() == 0:
    import time
    os.setsid()
    time.sleep(60)
def f(x): return x * x
"""


def checked(box: Sandbox, problem: dict[str, Any], solution: str) -> Verdict:
    tests = f"{problem['test']}\ncheck({problem['entry_point']})\n"
    program, setup = problem["prompt"] + solution, problem["prompt"]
    return box.check(program, tests, setup=setup, calls=[problem["entry_point"]], limits=Limits(timeout_s=10))


def here(problem: dict[str, Any]) -> float:
    """Seconds that program and tests take without any sandbox: trusted code only."""
    code = f"{problem['prompt']}{problem['canonical_solution']}\n{problem['test']}\ncheck({problem['entry_point']})\n"
    began = time.perf_counter()
    exec(compile(code, "problem", "exec"), {"__name__": "problem"})  # noqa: S102
    return time.perf_counter() - began


def timed(what: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = what()
    return time.perf_counter() - began, result


def state() -> tuple[int, str, int, set[str]]:
    """Processes below this one, its mounts and descriptors, and what a run would leave in the folder for such."""
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8")
    ours = {"left", "link"} & set(os.listdir("/tmp"))  # noqa: S108, PTH208
    below = len(psutil.Process().children(recursive=True))
    return below, mounts, len(os.listdir("/proc/self/fd")), ours  # noqa: PTH208


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=Path, required=True, help="HumanEval.jsonl.gz")
    parser.add_argument("--runs", type=int, default=1000)
    options = parser.parse_args()
    with gzip.open(options.problems, "rt", encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines]

    before = state()
    with Sandbox() as box:
        seconds, reason = timed(box.refusal)
        print(f"start {seconds * 1000:.0f} ms; refused: {reason}")
        verdicts = [checked(box, problem, problem["canonical_solution"]) for problem in problems]
        overheads = sorted(verdict.seconds - here(problem) for verdict, problem in zip(verdicts, problems, strict=True))
        print(f"canonical {dict(Counter(verdict.kind for verdict in verdicts))}")
        median, high = statistics.median(overheads), overheads[int(0.95 * len(overheads))]
        worst = overheads[-1]
        print(f"overhead a problem, ms: median {median * 1000:.1f}, 95% {high * 1000:.1f}, worst {worst * 1000:.1f}")
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            seconds, empty = timed(lambda: list(threads.map(lambda problem: checked(box, problem, ""), problems)))
        print(f"empty {dict(Counter(verdict.kind for verdict in empty))}; {len(problems) / seconds:.0f} problems/s")
        script = statistics.median(box.run("pass").seconds for _ in range(100))
        print(f"a program on its own: median {script * 1000:.1f} ms")

        limits = Limits(processes=4)
        seconds, kinds = timed(
            lambda: Counter(box.check(LITTER, "assert f(3) == 9", limits=limits).kind for _ in range(options.runs))
        )
        print(f"{options.runs} littering runs {dict(kinds)} in {seconds:.1f} s")
    after = state()
    print(f"left behind: {'nothing' if after == before else f'{before} became {after}'}")
    print(f"isolation: {', '.join(verdicts[0].isolation)}")


if __name__ == "__main__":
    main()
