"""How fast one core serves packed rows from a warm page cache.

Claim: at least 50 million tokens/s on one core: which rows a step sees, their tokens, positions, documents and labels.
Beside it, on the same file in the same run: a plain copy of contiguous tokens to int64 (the ceiling: no order, no
documents), and the loader of nanoGPT's kind (random places of one long array, inputs and targets, no documents).

    python bench/loader.py [--runs 7] [--seq-len 1024] [--batch-rows 16 64 512] [--documents 200000]

Runs alternate between the loaders. Tokens/s of CPU time of this one thread, so that other work on the machine counts
less; wall time is told beside it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llmctl.tokens.fit import fit
from llmctl.tokens.rows import Rows

VOCAB = 32_000
TOKENS_A_RUN = 1 << 25
Step = Callable[[int], int]


def written_rows(directory: Path, documents: int, seq_len: int) -> Rows:
    """Documents of log-normal lengths, packed, in a file that is mapped as the loader maps it."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.5, 1.2, documents), 2, 10**5).astype(np.int64)
    layout = fit(lengths, seq_len)
    path = directory / "train.bin"
    rng.integers(4, VOCAB, layout.rows * seq_len, dtype=np.uint16).tofile(path)
    tokens = np.asarray(np.memmap(path, dtype=np.uint16, mode="r")).reshape(layout.rows, seq_len)
    slices = np.stack((layout.document, layout.start, layout.length), axis=1).astype(np.int32)
    each, mean = layout.document.size / layout.rows, tokens.size / documents
    print(f"{tokens.size:,} tokens in {layout.rows:,} rows, {each:.2f} pieces a row, {mean:.0f} tokens a document")
    return Rows(tokens, layout.first, slices, pad_id=3)


def loaders(rows: Rows, batch_rows: int) -> dict[str, Step]:
    """By name, what makes the batch of a step and says how many tokens it has."""
    flat = rows._tokens.reshape(-1)  # noqa: SLF001 - the peers read the same file
    size, seq_len = batch_rows * rows.seq_len, rows.seq_len
    random = np.random.default_rng(1)

    def llmctl(step: int) -> int:
        return rows.batch(rows.rows_of_step(1, step, batch_rows)).tokens.size

    def copy(step: int) -> int:
        start = step * size % (flat.size - size)
        return flat[start : start + size].astype(np.int64).size

    def nanogpt(step: int) -> int:  # noqa: ARG001 - it draws with replacement: the step decides nothing
        places = random.integers(0, flat.size - seq_len - 1, batch_rows)
        inputs = np.stack([flat[place : place + seq_len].astype(np.int64) for place in places])
        targets = np.stack([flat[place + 1 : place + 1 + seq_len].astype(np.int64) for place in places])
        return min(inputs.size, targets.size)

    return {"llmctl": llmctl, "nanoGPT-style": nanogpt, "plain copy": copy}


def speed(step: Step, first: int, tokens: int) -> tuple[float, float]:
    """Tokens per second of CPU time and of wall time."""
    cpu, wall, done, number = time.thread_time(), time.perf_counter(), 0, first
    while done < tokens:
        done += step(number)
        number += 1
    return done / (time.thread_time() - cpu), done / (time.perf_counter() - wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--batch-rows", type=int, nargs="+", default=[16, 64, 512])
    parser.add_argument("--documents", type=int, default=200_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        rows = written_rows(Path(directory), options.documents, options.seq_len)
        rows._tokens.sum()  # noqa: SLF001 - into the page cache
        for batch_rows in options.batch_rows:
            steps = loaders(rows, batch_rows)
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
            for run in range(options.runs + 1):
                for name, step in steps.items():
                    found[name].append(speed(step, run * 1000, TOKENS_A_RUN))
            for name, speeds in found.items():
                cpu, wall = ([pair[at] / 1e6 for pair in speeds[1:]] for at in (0, 1))  # the first run warms up
                spread = f"{min(cpu):.0f}-{max(cpu):.0f}"
                median = f"{statistics.median(cpu):6.0f} M tokens/s ({spread}), wall {statistics.median(wall):.0f}"
                print(f"{batch_rows:4} rows a step  {name:14} {median}")


if __name__ == "__main__":
    main()
