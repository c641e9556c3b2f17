"""The stage `kenlm`: an n-gram model by KenLM's `lmplz`, for the perplexity of `clean --kenlm`."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from llmctl.config.errors import InputError
from llmctl.config.kenlm import KenlmConfig
from llmctl.data.clean.perplexity import sentences
from llmctl.data.tables import read_batches
from llmctl.pipeline.job import Job, Product
from llmctl.store.files import explained

MODEL_FILES = {"binary": "model.bin", "arpa": "model.arpa"}
TEXT = "text"
FALLBACK = "Substituting fallback discounts for order "
HOW_TO_GET = (
    "build KenLM from https://github.com/kpu/kenlm (it needs cmake and Boost: `cmake -B build && "
    "make -C build lmplz build_binary`) and put build/bin on PATH"
)


def run(job: Job[KenlmConfig]) -> Product:
    """Write one line a sentence, split as `clean` will split what it measures, and estimate the model.

    Raises:
        InputError: KenLM's programs are not on PATH (said before any work), the documents hold no word, or
            `lmplz` refuses them.
    """
    config = job.config
    lmplz = _program("lmplz")
    build_binary = _program("build_binary") if config.format == "binary" else ""
    counts = _write_text(job)
    if not counts["words"]:
        raise InputError("there is no word to train on", hint="give documents that hold text")
    job.progress.note(f"lmplz: {counts['words']:,} words in {counts['lines']:,} lines")
    job.out.mkdir(parents=True, exist_ok=True)
    model = job.out / MODEL_FILES[config.format]
    arpa = model if config.format == "arpa" else job.work / MODEL_FILES["arpa"]
    said = _run(lmplz_command(lmplz, config, job.work, arpa), job.work)
    if orders := _fallbacks(said):
        job.progress.note(f"too few n-grams of order {orders} to estimate their discounts: 0.5, 1 and 1.5 are taken")
    if build_binary:
        _run([build_binary, "-T", f"{job.work}/", "trie", str(arpa), str(model)], job.work)
    totals: dict[str, int | float | str] = {
        **{name: counts[name] for name in ("documents", "lines", "words")},
        **{f"ngrams.{order}": count for order, count in ngram_counts(arpa).items()},
        "model_bytes": model.stat().st_size,
    }
    job.log({"stage": "kenlm", **totals})
    semantic = {"file": model.name, "lowercase": config.lowercase, "order": config.order}
    return Product("llmctl.kenlm/1", semantic=semantic, totals=totals)


def lmplz_command(program: str, config: KenlmConfig, work: Path, arpa: Path) -> list[str]:
    """The command that reads `work`/text and writes `arpa`; its temporary files lie in `work`."""
    command = [program, "--order", str(config.order), "--memory", f"{config.memory_fraction:.0%}"]
    command += ["--temp_prefix", f"{work}/", "--text", str(work / TEXT), "--arpa", str(arpa)]
    if config.prune:
        command += ["--prune", *map(str, config.prune)]
    return [*command, "--discount_fallback"] if config.discount_fallback else command


def ngram_counts(arpa: Path) -> dict[int, int]:
    """Number of n-grams by order, from the head of an ARPA file."""
    counts: dict[int, int] = {}
    with explained(str(arpa)), open(arpa, encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("ngram "):
                order, _, count = line.removeprefix("ngram ").partition("=")
                counts[int(order)] = int(count)
            elif counts:
                break
    return counts


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise InputError(f"KenLM's {name} is not on PATH; KenLM's Python package lacks it", hint=HOW_TO_GET)
    return path


def _write_text(job: Job[KenlmConfig]) -> Counter[str]:
    """Write the sentences of all documents; the number of documents that hold any, of lines and of words."""
    counts: Counter[str] = Counter()
    job.work.mkdir(parents=True, exist_ok=True)
    path = job.work / TEXT
    with explained(str(path)), open(path, "w", encoding="utf-8", newline="\n") as handle:
        for batch in read_batches(job.inputs["input"], ["text"]):
            for text in batch.column("text").to_pylist():
                lines = list(sentences(text, lowercase=job.config.lowercase))
                handle.writelines(" ".join(words) + "\n" for words in lines)
                counts["documents"] += bool(lines)
                counts["lines"] += len(lines)
                counts["words"] += sum(map(len, lines))
            job.progress.update(counts["documents"], None, "documents")
    return counts


def _run(command: Sequence[str], work: Path) -> str:
    """Run one of KenLM's programs; what it said.

    Raises:
        InputError: it failed, with the reason that it gave.
    """
    log = work / "kenlm.log"
    name = Path(command[0]).name
    with explained(name), open(log, "wb") as handle:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=handle, stderr=handle, check=False)
    said = log.read_text(encoding="utf-8", errors="replace")
    if done.returncode:
        reason = " ".join(said.rpartition(" threw ")[2].split())[-400:]  # after it come the exception and its text
        hint = "less memory_fraction, more room on the disk, discount_fallback=true or more text may mend it"
        raise InputError(f"{name} ended with status {done.returncode}: {reason}", hint=hint)
    return said


def _fallbacks(said: str) -> str:
    """The orders, from 1, for which `lmplz` says that it took the fallback discounts; it counts them from 0."""
    orders = [line.removeprefix(FALLBACK).partition(":")[0] for line in said.splitlines() if line.startswith(FALLBACK)]
    return ", ".join(str(int(order) + 1) for order in orders)
