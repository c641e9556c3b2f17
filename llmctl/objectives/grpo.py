"""The stage `grpo`: a policy improved by rewards for its own answers (GRPO, PPO and their relatives)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from llmctl.config.errors import InputError, UsageError
from llmctl.config.grpo import GrpoConfig
from llmctl.config.rewards import ScorerReward
from llmctl.data.rollouts import FILE
from llmctl.model import scoring
from llmctl.model.device import choose_device
from llmctl.objectives import adapter, checkpoint
from llmctl.objectives.explore import FOLDER, Asked
from llmctl.objectives.heldout_prompts import HeldOutPrompts
from llmctl.objectives.preferred import first_measured
from llmctl.objectives.prompts import Prompts, read_prompts
from llmctl.objectives.rewarded import PolicyObjective
from llmctl.objectives.rewards.registry import Rewards, Score
from llmctl.objectives.rewards.scorer import scorer_of
from llmctl.objectives.rollouts import gathered
from llmctl.objectives.start import check_same_tokens, fill_id, longest, open_model, open_tokenizer
from llmctl.pipeline.job import FileFacts, Job, Product
from llmctl.store.artifact import Artifact
from llmctl.train import launch
from llmctl.train.loop import fit
from llmctl.train.ranks import environment


def run(job: Job[GrpoConfig]) -> Product:
    """Train in this process; the configuration and `Explorer` refuse ranks."""
    return launch.start(job, "llmctl.objectives.grpo:train")


def train(job: Job[GrpoConfig]) -> Product:
    """Roll out, judge, learn, and publish the policy with all that it said.

    Raises:
        InputError: a prompt is malformed or leaves no room for an answer, or no answer gets a reward.
        UsageError: a launcher started ranks, or a model is given that nothing looks at.
    """
    if environment().world_size > 1:
        raise UsageError("grpo trains in a single process", hint="start llmctl without a launcher")
    given, config = job.artifact(), job.config
    tokenizer = open_tokenizer(given)
    length = longest(given, config.max_tokens)
    prompts = read_prompts(
        job.inputs["prompts"],
        tokenizer,
        chat=bool(given.manifest.semantic.get("chat")) if config.chat == "auto" else config.chat,
        longest=length - config.max_new_tokens,
        fraction=config.heldout_fraction,
        overlong=config.overlong,
    )
    _tell(job, prompts, length)
    model = open_model(given, tokenizer, config.base)
    start = adapter.begin(model, config.lora, config.seed)
    if config.policy.baseline == "value":
        scoring.add_head(model)
    rewards = Rewards(config.rewards, config.reward_timeout_s, _scorer(job))
    asked = Asked(job, tokenizer, prompts.kept, rewards, _reference(job), fill_id(given, tokenizer))
    objective = PolicyObjective(asked, config)
    steps = config.steps or _steps(config, len(prompts.kept))
    held = HeldOutPrompts(asked, prompts.held, config) if prompts.held else None
    fitted = fit(job, model, objective, steps=steps, heldout_rows=held, measured_before=True)
    if fitted.weights is not None:
        fitted.weights.pop(scoring.WEIGHT, None)  # what was expected of answers is of no use to who asks for one
    rows = gathered(sorted((job.work / FOLDER).glob("*.parquet")), job.out / FILE)
    totals: dict[str, int | float | str] = {
        "prompts": len(prompts.kept),
        "dropped.overlong": len(prompts.overlong),
        "answers": rows,
        "logprob_gap": _largest_gap(job.metrics_file),
        **_before(job.metrics_file),
    }
    asked_about = job.inputs["prompts"]
    about_held = isinstance(asked_about, Artifact) and "heldout_fraction" in asked_about.manifest.semantic
    facts = checkpoint.tuned_facts(given, length, 0.0 if about_held else None)  # a quiz asks about what was held out
    facts["chat"] = bool(given.manifest.semantic.get("chat")) if config.chat == "auto" else config.chat
    product = checkpoint.publish_tuned(job, fitted, model, start, semantic=facts, totals=totals)
    return Product(product.schema, product.semantic, product.totals, {**product.files, FILE: FileFacts(rows=rows)})


def _largest_gap(metrics: Path) -> float:
    """Of the whole run, what went before an interrupt among it."""
    with open(metrics, encoding="utf-8") as lines:
        return max((json.loads(line).get("logprob_gap", 0.0) for line in lines), default=0.0)


def _before(metrics: Path) -> dict[str, float]:
    """The held-out reward before the first step, where prompts are held out."""
    first = first_measured(metrics)
    return {"before_heldout_reward": first["heldout_reward"]} if "heldout_reward" in first else {}


def _steps(config: GrpoConfig, prompts: int) -> int:
    """Steps of as many rollouts as it takes to see the prompts `epochs` times."""
    rollouts = max(1, -(-int(config.epochs * prompts + 1 - 1e-9) // config.prompts_per_rollout))
    return rollouts * config.steps_per_rollout


def _reference(job: Job[GrpoConfig]) -> Any:
    """The model to stay close to: the one given, or the one to start from; None where nothing looks at it."""
    if not job.config.needs_reference:
        if "reference" in job.inputs:
            raise UsageError("policy.kl.weight is 0, so no reference is looked at", hint="leave out --reference")
        return None
    policy = job.artifact()
    given = job.artifact("reference") if "reference" in job.inputs else policy
    check_same_tokens(policy, given)
    base = job.config.base if given.digest == policy.digest else "full"  # what it starts from is what it stays close to
    model = open_model(given, open_tokenizer(given), base).to(choose_device(job.config.device)).eval()
    return model.requires_grad_(False)


def _scorer(job: Job[GrpoConfig]) -> Score | None:
    """The reward model, where one of the rewards asks for it."""
    wanted = any(isinstance(reward, ScorerReward) for reward in job.config.rewards)
    if wanted != ("scorer" in job.inputs):
        if wanted:
            raise UsageError("the reward scorer needs a reward model", hint="give --scorer REF")
        raise UsageError("no reward looks at --scorer", hint="leave it out, or add scorer to the rewards")
    if not wanted:
        return None
    given = job.artifact("scorer")
    if (head := given.manifest.semantic.get("head", scoring.HEAD)) != scoring.HEAD:
        raise InputError(
            f"{given.ref} scores {head}, not whole answers", hint="train one with llmctl reward --preferences"
        )
    check_same_tokens(job.artifact(), given, hint="policy and reward model must read the same ids")
    return scorer_of(given.data, choose_device(job.config.device), torch.float32)


def _tell(job: Job[GrpoConfig], prompts: Prompts, length: int) -> None:
    """Say what is not learned from."""
    overlong = len(prompts.overlong)
    if overlong:
        every = overlong + len(prompts.kept) + len(prompts.held)
        room = length - job.config.max_new_tokens
        job.progress.note(f"dropped {overlong} prompts longer than {room} tokens of {every}")
