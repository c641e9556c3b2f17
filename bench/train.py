"""How fast `llmctl pretrain` trains beside a loop like nanoGPT's, Hugging Face's Trainer and litgpt.

The same model (shape and number of parameters), the same packed rows in the same order, the same precision, AdamW,
clipping at 1, the loss read at each step. Each run is a process of its own, and the runs alternate, so that a machine
whose speed drifts treats all alike. The first steps, in which compilers work, are left out of the speed and told apart.
Wall time counts on a machine with nothing else to do; CPU time of all threads says what was computed on a busy one.

    python bench/train.py --peer-python PEERS/bin/python [--runs 3] [--steps 24] [--batch-rows 16] [--model tiny]
        [--threads 2] [--precisions fp32 bf16] [--tools llmctl nanogpt+compile …]

Only llmctl masks other documents of a row; its peers see across them. The peers need torch, transformers, accelerate
and litgpt with lightning.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.config.model import ModelConfig
from llmctl.store.store import Store
from llmctl.tokens.rows import Rows
from llmctl.tokens.tokenizer import Tokenizer

OURS = ("llmctl", "llmctl+compile")
PEERS = ("nanogpt", "nanogpt+compile", "trainer", "trainer+compile", "litgpt", "litgpt+compile")
LEFT_OUT = 4  # steps
MICRO_ROWS = 4  # best for all: caches are small


def llmctl(store: Path, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "llmctl", *arguments, "--store", str(store), "-q"],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
    )


def pack_rows(store: Path) -> None:
    """Python's documentation in rows of 256 tokens of a vocabulary of 4,096."""
    llmctl(store, "collect", "python-docs")
    llmctl(store, "dedup", "python-docs")
    llmctl(store, "tokenize", "python-docs.dedup", "--vocab-size", "4096")
    llmctl(store, "pack", "python-docs.tokenize", "--seq-len", "256")


def written_job(store: Path, folder: Path, options: argparse.Namespace, precision: str) -> Path:
    """What the peers are told, with the rows that llmctl is going to see, each with the token after it."""
    opened = Store.open(store)
    rows = Rows.open(opened.resolve("python-docs.pack"), "train")
    vocab_size = Tokenizer.open(opened.resolve("python-docs.tokenizer").data).vocab_size
    seen = []
    for step in range(options.steps):
        batch = rows.batch(rows.rows_of_step(0, step, options.batch_rows))
        seen.append(np.concatenate((batch.tokens, batch.labels[:, -1:]), axis=1).astype(np.int32))
    np.save(folder / "rows.npy", np.concatenate(seen))
    model = ModelConfig.model_validate(options.model)
    shape = {name: getattr(model, name) for name in ("width", "layers", "heads", "kv_heads", "ffn_width")}
    job = {
        "rows": str(folder / "rows.npy"),
        "shape": {**shape, "vocab_size": vocab_size, "seq_len": rows.seq_len},
        "precision": precision,
        "micro_rows": MICRO_ROWS,
        "batch_rows": options.batch_rows,
        "threads": options.threads,
    }
    path = folder / f"{precision}.json"
    path.write_text(json.dumps(job))
    return path


def run_clocked(out: Path, arguments: list[str]) -> None:
    """`llmctl ARGUMENTS` in this process, with a clock around each step; writes what the peers print."""
    from llmctl.cli.main import main as command
    from llmctl.train import loop

    wall, cpu = [], []
    take_step, runs = loop.Run.take_step, []

    def clocked(run: loop.Run, *given: Any) -> None:
        if not wall:
            wall.append(time.perf_counter())
            cpu.append(time.process_time())
        take_step(run, *given)
        runs.append(run)
        wall.append(time.perf_counter())
        cpu.append(time.process_time())

    loop.Run.take_step = clocked  # type: ignore[method-assign]
    sys.argv = ["llmctl", *arguments]
    try:
        command()
    except SystemExit as ended:
        if ended.code:
            raise
    parameters = runs[-1].model.parameters_count()
    figures = {"wall": np.diff(wall).tolist(), "cpu": np.diff(cpu).tolist()}
    out.write_text(json.dumps({**figures, "parameters": parameters, "loss": runs[-1].loss}))


def measure(store: Path, job: Path, options: argparse.Namespace, tool: str, precision: str) -> dict[str, Any]:
    """One run of one tool."""
    out = job.with_name("result.json")
    if tool in OURS:
        size = ["--model", options.model, "--steps", str(options.steps), "--batch-rows", str(options.batch_rows)]
        settings = [f"micro_batch_rows={MICRO_ROWS}", f"threads={options.threads}", f"compile={tool != 'llmctl'}"]
        idle = ["eval_every_steps=0", "checkpoint_every_steps=0", "heldout_rows=1"]
        given = ["pretrain", "python-docs.pack", *size, *settings, *idle, "--precision", precision, "--force", "-q"]
        command = [sys.executable, __file__, "--clocked", str(out), *given, "--store", str(store), "--name", "run"]
    else:
        command = [options.peer_python, str(Path(__file__).with_name("train_peers.py")), tool, str(job)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment)
    result: dict[str, Any] = json.loads(out.read_text() if tool in OURS else done.stdout.splitlines()[-1])
    return result


def speeds(results: list[dict[str, Any]], clock: str, tokens: int) -> list[float]:
    """Tokens/s of each run: the median over its steps."""
    return [tokens / statistics.median(result[clock][LEFT_OUT:]) for result in results]


def told(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def report(found: dict[str, list[dict[str, Any]]], precision: str, tokens: int) -> None:
    """Ratios first: our best to the best of the peers, run by run."""
    for clock in ("wall", "cpu"):
        by_tool = {tool: speeds(results, clock, tokens) for tool, results in found.items() if results}
        middle = {tool: statistics.median(values) for tool, values in by_tool.items()}
        ours = max((tool for tool in middle if tool in OURS), key=middle.__getitem__, default=None)
        peer = max((tool for tool in middle if tool not in OURS), key=middle.__getitem__, default=None)
        if ours and peer:
            ratios = [a / b for a, b in zip(by_tool[ours], by_tool[peer], strict=True)]
            print(f"\n{precision}, {clock} time: {ours} is {told(ratios, 2)} times {peer}, the best of the peers")
        for tool, values in sorted(by_tool.items(), key=lambda item: -middle[item[0]]):
            extra = [r[clock][0] - statistics.median(r[clock][LEFT_OUT:]) for r in found[tool]]
            loss = found[tool][0]["loss"]
            size = found[tool][0]["parameters"]
            print(
                f"  {tool:16} {told(values):28} tokens/s; first step {statistics.median(extra):5.1f} s more; "
                f"{size:,} parameters, loss {loss if loss is None else round(loss, 3)}"
            )


def main() -> None:
    if sys.argv[1:2] == ["--clocked"]:
        run_clocked(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="interpreter of the peers; without it only llmctl runs")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch-rows", type=int, default=16)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--tools", nargs="+", choices=(*OURS, *PEERS), default=[*OURS, *PEERS])
    options = parser.parse_args()
    tools = [tool for tool in options.tools if tool in OURS or options.peer_python]
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        store = folder / "artifacts"
        pack_rows(store)
        jobs = {precision: written_job(store, folder, options, precision) for precision in options.precisions}
        found: dict[str, dict[str, list[dict[str, Any]]]] = {p: {tool: [] for tool in tools} for p in jobs}
        for number in range(options.runs):
            for precision, job in jobs.items():
                for tool in tools:
                    print(f"run {number + 1}, {precision}, {tool}", file=sys.stderr, flush=True)
                    found[precision][tool].append(measure(store, job, options, tool, precision))
    print(f"{options.model}, {options.batch_rows} rows a step, {options.threads} threads, {options.runs} runs")
    for precision in jobs:
        report(found[precision], precision, options.batch_rows * 256)


if __name__ == "__main__":
    main()
