"""Answers a second of `grpo` beside TRL's GRPOTrainer: the same model, prompts, group, lengths and cores, in turn.

    python bench/rl.py [--steps 5] [--rounds 3] [--model tiny]

Both start from one checkpoint with all but random weights, so nearly every answer has the full length, and judge by
the same little function. A step is 8 prompts with 8 answers each, learned from once. TRL generates by transformers, as
its documentation says for a machine without vLLM. Needs the extra `dev`. Generation and the rest of a step (rewards,
log-probabilities, update) are shown apart, in wall seconds of the steps alone; the first step of each run warms up and
is not counted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from posttrain import checkpoint, conversations, run, said, settings, theirs

from llmctl.config.grpo import GrpoConfig
from llmctl.store.artifact import Artifact, FileInput
from llmctl.store.store import Store

PROMPTS, GROUP, LONGEST = 8, 8, 64
FUNCTION = "def score(completion, answer, **row):\n    return completion.count('a') / (1 + len(completion))\n"
Step = tuple[float, float, int]
"""Seconds of generation, seconds of all, tokens generated."""


def main() -> None:
    """Print a JSON line for each side, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="tiny")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), given.steps, given.rounds, given.model)


def compare(folder: Path, steps: int, rounds: int, model: str) -> None:
    """Both sides in turn, `rounds` times."""
    store = Store.open(folder / "store", create=True)
    rows = conversations(128)
    base = checkpoint(store, folder, rows, model)
    prompts = [row["prompt"] for row in rows]
    found: dict[str, list[Step]] = {"llmctl": [], "trl": []}
    for number in range(rounds):
        for side, taken in (
            ("llmctl", ours(store, base, folder, prompts, steps, number)),
            ("trl", of_trl(base.data, prompts, folder / f"trl{number}", steps, number)),
        ):
            found[side] += taken
            print(json.dumps({"side": side, "generation_s, step_s, tokens": taken}), file=sys.stderr, flush=True)
    middle = {}
    for side, taken in found.items():
        generation, whole, tokens = (statistics.median(each) for each in zip(*taken, strict=True))
        middle[side] = (PROMPTS * GROUP / whole, tokens / generation, whole - generation)
        figures = {
            "samples_per_s": PROMPTS * GROUP / whole,
            "generation_s": generation,
            "generated_tokens_per_s": tokens / generation,
            "update_s": whole - generation,
            "tokens_per_step": tokens,
        }
        print(json.dumps({"side": side, **figures}))
    (samples, speed, update), (samples_, speed_, update_) = middle["llmctl"], middle["trl"]
    print(json.dumps({"ratio": samples / samples_, "generation": speed / speed_, "update": update_ / update}))


def ours(store: Store, base: Artifact, folder: Path, prompts: list[str], steps: int, number: int) -> list[Step]:
    """Steps of one run."""
    path, function = folder / "prompts.jsonl", folder / "bench_reward.py"
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": ""}) + "\n" for prompt in prompts))
    function.write_text(FUNCTION)
    config = GrpoConfig.model_validate(
        {
            "group": GROUP,
            "prompts_per_rollout": PROMPTS,
            "max_new_tokens": LONGEST,
            "rewards": f"{function}:score",
            "chat": True,
            "steps": steps,
            "seed": number,
            "checkpoint_every_steps": 0,
        }
    )
    made = run(store, "grpo", config, input=base, prompts=FileInput.of(path, "prompts"))
    rows = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    spent = [row["elapsed_s"] for row in rows]
    each = [after - before for before, after in itertools.pairwise(spent)]
    generated = [(row["generate_s"], int(row["generated_tokens"])) for row in rows[1:]]
    return [(seconds, whole, tokens) for (seconds, tokens), whole in zip(generated, each, strict=True)]


def of_trl(directory: Path, prompts: list[str], out: Path, steps: int, number: int) -> list[Step]:
    """The same of TRL's trainer, whose generation and step are timed from outside."""
    import datasets
    import trl

    taken: list[list[float]] = []

    class Timed(trl.GRPOTrainer):  # type: ignore[misc]
        def _generate(self, prompts: list[Any]) -> Any:
            begun = time.perf_counter()
            made = super()._generate(prompts)
            taken[-1][0] = time.perf_counter() - begun
            taken[-1][2] = sum(map(len, made[1]))
            return made

        def training_step(self, *given: Any, **named: Any) -> Any:
            now = time.perf_counter()
            if taken:
                taken[-1][1] = now - taken[-1][1]
            taken.append([0.0, now, 0])
            return super().training_step(*given, **named)

    model, words = theirs(directory)
    config = trl.GRPOConfig(
        **{**settings(out), "per_device_train_batch_size": PROMPTS * GROUP},
        num_generations=GROUP,
        max_completion_length=LONGEST,
        max_steps=steps,
        learning_rate=1e-6,
        beta=0.0,
        loss_type="grpo",
        temperature=1.0,
        seed=number,
    )
    rows = datasets.Dataset.from_list([{"prompt": said("user", prompt)} for prompt in prompts])
    namespace: dict[str, Any] = {}
    exec(FUNCTION, namespace)  # noqa: S102 (the text above)

    def judge(completions: list[Any], **row: Any) -> list[float]:
        del row
        return [namespace["score"](one[0]["content"], "") for one in completions]

    trainer = Timed(model=model, args=config, train_dataset=rows, processing_class=words, reward_funcs=judge)
    trainer.train()
    taken[-1][1] = time.perf_counter() - taken[-1][1]
    return [(generation, whole, int(tokens)) for generation, whole, tokens in taken[1:]]


if __name__ == "__main__":
    main()
