"""How fast documents become ids here, beside the libraries' own multi-threaded encoding.

Claim: `Tokenizer.encode_batch` on every core reaches at least 90 % of what the library that does the work gives by
its own batch call in the same run: `SentencePieceProcessor.encode` with as many threads for SentencePiece kinds,
`Tokenizer.encode_batch_fast` of `tokenizers` for byte-level BPE. Both sides start from the same list of strings and
end with an int32 array for each. Runs alternate, so that a machine whose speed drifts treats both alike.

    python bench/encode.py [--runs 7] [--vocab-size 8192] [--megabytes 20]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers

from llmctl.config.tokens import TokenizerConfig
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.tokens.train import trained_files

KINDS: dict[str, dict[str, Any]] = {
    "bpe": {"model": "bpe"},
    "unigram": {"model": "unigram"},
    "byte-bpe gpt4": {"model": "byte-bpe", "split": "gpt4"},
    "byte-bpe gpt2": {"model": "byte-bpe", "split": "gpt2", "split_digits": False},
}
BATCH = 1024  # documents in one call, as the tokenize stage reads them


def standard_library(megabytes: float) -> list[str]:
    """Source files of the running Python: real text with real indentation, the same for the same version."""
    found: list[str] = []
    size = 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts or size > megabytes * 1e6:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        found += [text[at : at + 4000] for at in range(0, len(text), 4000)]
        size += len(text.encode())
    return found


def library_call(directory: Path, threads: int) -> Callable[[list[str]], list[Any]]:
    """The batch call of the library that encodes for this tokenizer."""
    if (directory / "tokenizer.model").is_file():
        processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
        return lambda texts: processor.encode(texts, num_threads=threads, return_type="numpy")
    fast = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    return lambda texts: [
        np.array(one.ids, dtype=np.int32) for one in fast.encode_batch_fast(texts, add_special_tokens=False)
    ]


def seconds(encode: Callable[[list[str]], list[Any]], texts: list[str]) -> float:
    """Time of all batches."""
    start = time.perf_counter()
    for at in range(0, len(texts), BATCH):
        encode(texts[at : at + BATCH])
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--megabytes", type=float, default=20)
    options = parser.parse_args()
    threads = os.cpu_count() or 1
    texts = standard_library(options.megabytes)
    size = sum(len(text.encode()) for text in texts)
    results = {}
    for name, fields in KINDS.items():
        config = TokenizerConfig.model_validate({"vocab_size": options.vocab_size, **fields})
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            for file, content in trained_files(iter(texts[::8]), config).items():
                (directory / file).write_bytes(content)
            ours, theirs = Tokenizer.open(directory), library_call(directory, threads)
        calls = {"llmctl": lambda some, ours=ours: ours.encode_batch(some, threads=threads), "library": theirs}
        times: dict[str, list[float]] = {who: [] for who in calls}
        for run in range(options.runs + 1):
            for who, call in calls.items():
                spent = seconds(call, texts)
                if run:  # the first warms up
                    times[who].append(spent)
        best = {who: size / 1e6 / min(spent) for who, spent in times.items()}
        middle = statistics.median(b / a for a, b in zip(times["llmctl"], times["library"], strict=True))
        results[name] = {who: round(speed, 2) for who, speed in best.items()} | {"median_ratio": round(middle, 3)}
        print(name, results[name], file=sys.stderr, flush=True)
    machine = {"python": platform.python_version(), "threads": threads, "machine": platform.machine()}
    print(json.dumps({"bytes": size, "documents": len(texts), "MB/s": results, **machine}, indent=2))


if __name__ == "__main__":
    main()
