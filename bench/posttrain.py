"""Samples a second of `sft` and `dpo` beside TRL: the same model, data and precision, in turn, in one run.

    python bench/posttrain.py [--pairs 256] [--rounds 3] [--model tiny]

Both start from one checkpoint with random weights and read the same made-up conversations, whose answers are of very
different lengths, as real ones are. Needs the extra `dev` (trl, datasets). TRL runs as its documentation says for one
device without FlashAttention: padded batches of 8, no activation checkpointing, its reference's log-probabilities
once beforehand, as ours are. What is timed are training steps alone, in wall and in CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from llmctl.config.dpo import DpoConfig
from llmctl.config.tokens import PackConfig, TokenizeConfig
from llmctl.config.train import PretrainConfig, SftConfig
from llmctl.pipeline.execute import Call, execute
from llmctl.pipeline.job import Silent
from llmctl.pipeline.stages import stage_named
from llmctl.store.artifact import Artifact, FileInput
from llmctl.store.store import Store

WORDS = [f"{first}{last}" for first in ("al", "be", "ga", "de", "om", "zi", "ka") for last in ("pha", "ta", "ma", "ra")]
BATCH, LONGEST = 8, 256


def main() -> None:
    """Print a JSON line for each objective and side, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="tiny")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), given.pairs, given.rounds, given.model)


def compare(folder: Path, count: int, rounds: int, model: str) -> None:
    """Both sides in turn, `rounds` times."""
    store = Store.open(folder / "store", create=True)
    rows = conversations(count)
    files = written(folder, rows)
    base = checkpoint(store, folder, rows, model)
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for number in range(rounds):
        for objective in ("sft", "dpo"):
            ours = (count / seconds for seconds in timed(store, base, files, objective, number))
            theirs = (count / seconds for seconds in TRL[objective](base.data, rows, folder / f"{objective}{number}"))
            found.setdefault((objective, "llmctl"), []).append(tuple(ours))  # type: ignore[arg-type]
            found.setdefault((objective, "trl"), []).append(tuple(theirs))  # type: ignore[arg-type]
    for objective in ("sft", "dpo"):
        middle = {}
        for side in ("llmctl", "trl"):
            wall, cpu = (statistics.median(each) for each in zip(*found[objective, side], strict=True))
            middle[side] = (wall, cpu)
            print(json.dumps({"objective": objective, "side": side, "samples_per_s": wall, "samples_per_cpu_s": cpu}))
        ratios = [ours / theirs for ours, theirs in zip(middle["llmctl"], middle["trl"], strict=True)]
        print(json.dumps({"objective": objective, "ratio": ratios[0], "ratio_of_cpu": ratios[1]}))


def conversations(count: int) -> list[dict[str, str]]:
    """Prompts with two answers each, of 4 to 100 words, most of them short."""
    rng = random.Random(0)

    def said() -> str:
        return " ".join(rng.choices(WORDS, k=min(100, max(4, int(rng.lognormvariate(3, 0.8))))))

    return [{"prompt": " ".join(rng.choices(WORDS, k=8)), "chosen": said(), "rejected": said()} for _ in range(count)]


def written(folder: Path, rows: list[dict[str, str]]) -> dict[str, FileInput]:
    """The rows as files for either objective."""
    chats = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    made = {}
    for name, content, kind in (("sft", chats, "chats"), ("dpo", rows, "preferences")):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
        made[name] = FileInput.of(path, kind)
    return made


def checkpoint(store: Store, folder: Path, rows: list[dict[str, str]], model: str) -> Artifact:
    """A model with all but random weights, and a tokenizer of the same words."""
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": " ".join(row.values()), "id": row["prompt"]}) + "\n" for row in rows))
    config = TokenizeConfig.model_validate({"train": {"vocab_size": 400}})
    tokens = run(store, "tokenize", config, input=FileInput.of(path, "documents"))
    packed = run(store, "pack", PackConfig(seq_len=LONGEST), input=tokens)
    return run(store, "pretrain", PretrainConfig.model_validate({"model": model, "steps": 1}), input=packed)


def run(store: Store, command: str, config: Any, **inputs: Any) -> Artifact:
    """One stage."""
    return execute(Call(stage_named(command), config, inputs), store, Silent()).artifact


def timed(
    store: Store, base: Artifact, files: dict[str, FileInput], objective: str, number: int
) -> tuple[float, float]:
    """Wall and CPU seconds of one pass over all samples: of its steps alone, and of the stage less its start.

    The reference is scored before, by a run of one step that is not timed.
    """
    fields = {"epochs": 1, "max_tokens": LONGEST, "heldout_fraction": 0.0, "batch_rows": BATCH, "seed": number}
    fields["checkpoint_every_steps"] = 0
    model, role = (SftConfig, "chats") if objective == "sft" else (DpoConfig, "preferences")
    inputs: dict[str, Any] = {"input": base, role: files[objective]}
    if objective == "dpo":
        fields["row_tokens"] = 2 * LONGEST
    run(store, objective, model.model_validate({**fields, "steps": 1}), **inputs)
    before = time.process_time()
    begun = time.perf_counter()
    made = run(store, objective, model.model_validate(fields), **inputs)
    wall, cpu = time.perf_counter() - begun, time.process_time() - before
    steps = float(made.manifest.totals["train_s"])
    epochs = float(made.manifest.totals["epochs"])
    return steps / epochs, cpu * steps / wall / epochs


def sft_of_trl(directory: Path, rows: list[dict[str, str]], out: Path) -> tuple[float, float]:
    """TRL's SFTTrainer over one epoch."""
    import trl

    model, words = theirs(directory)
    config = trl.SFTConfig(**settings(out), max_length=LONGEST, completion_only_loss=True)
    texts = [{"prompt": said("user", row["prompt"]), "completion": said("assistant", row["chosen"])} for row in rows]
    return trained(trl.SFTTrainer, config, model, words, texts)


def dpo_of_trl(directory: Path, rows: list[dict[str, str]], out: Path) -> tuple[float, float]:
    """TRL's DPOTrainer over one epoch."""
    import trl

    model, words = theirs(directory)
    config = trl.DPOConfig(**settings(out), max_length=LONGEST, precompute_ref_log_probs=True)
    pairs = [
        {
            "prompt": said("user", row["prompt"]),
            "chosen": said("assistant", row["chosen"]),
            "rejected": said("assistant", row["rejected"]),
        }
        for row in rows
    ]
    return trained(trl.DPOTrainer, config, model, words, pairs)


TRL = {"sft": sft_of_trl, "dpo": dpo_of_trl}


def said(role: str, content: str) -> list[dict[str, str]]:
    """One message."""
    return [{"role": role, "content": content}]


def theirs(directory: Path) -> tuple[Any, Any]:
    """The checkpoint in transformers, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa")
    return model, AutoTokenizer.from_pretrained(directory)


def settings(out: Path) -> dict[str, Any]:
    """What both trainers are told."""
    return {
        "output_dir": str(out),
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def trained(trainer: Any, config: Any, model: Any, words: Any, rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Wall and CPU seconds of the trainer's own loop."""
    import datasets

    made = trainer(model=model, args=config, train_dataset=datasets.Dataset.from_list(rows), processing_class=words)
    before = time.process_time()
    begun = time.perf_counter()
    result = made.train()
    wall, cpu = time.perf_counter() - begun, time.process_time() - before
    steps = float(result.metrics["train_runtime"])
    return steps, cpu * steps / wall


if __name__ == "__main__":
    main()
