"""The stage `grpo`: a policy improved by rewards for its own answers (GRPO, PPO and their relatives)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from llmctl.config.errors import InputError, UsageError
from llmctl.config.grpo import GrpoConfig
from llmctl.data.rollouts import FILE
from llmctl.model import scoring
from llmctl.model.device import choose_device
from llmctl.model.kernels import set_backend
from llmctl.objectives import adapter, checkpoint
from llmctl.objectives.asked import Question, prompts_of
from llmctl.objectives.explore import FOLDER, Asked
from llmctl.objectives.gym import gym_questions
from llmctl.objectives.heldout_prompts import HeldOutPrompts
from llmctl.objectives.preferred import first_measured
from llmctl.objectives.prompts import Prompts, read_prompts
from llmctl.objectives.replay import Replay
from llmctl.objectives.rewarded import PolicyObjective
from llmctl.objectives.rewards.registry import Rewards, Score
from llmctl.objectives.rewards.scorer import check_scorer, scorer_of
from llmctl.objectives.rollouts import gathered
from llmctl.objectives.served import Server
from llmctl.objectives.start import check_same_tokens, context_of, fill_id, longest, open_model, open_tokenizer
from llmctl.objectives.tools.talk import Talks
from llmctl.pipeline.job import FileFacts, Job, Product
from llmctl.store.artifact import Artifact
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.train import launch
from llmctl.train.loop import fit
from llmctl.train.ranks import environment


def run(job: Job[GrpoConfig]) -> Product:
    """Refuse inputs that do not go together; train here, or with ranks.

    Raises:
        InputError: the reward model scores something else than whole answers of this policy.
        UsageError: of prompts and gym both are given, or neither; or a model or a server that nothing looks at.
    """
    _check_given(job)
    return launch.start(job, "llmctl.objectives.grpo:train")


def train(job: Job[GrpoConfig]) -> Product:
    """What every rank runs: roll out, judge, learn, and publish the policy with all that it said.

    Raises:
        InputError: a prompt is malformed or leaves no room for an answer, or no answer gets a reward.
    """
    given, config = job.artifact(), job.config
    tokenizer = open_tokenizer(given)
    length = longest(given, config.max_tokens)
    chat = bool(given.manifest.semantic.get("chat")) if config.chat == "auto" else config.chat
    talks = _talks(config, tokenizer, length, chat=chat)
    questions, source = _questions(job)
    prompts = read_prompts(
        questions,
        source,
        tokenizer,
        chat=chat,
        longest=length - config.max_new_tokens,
        fraction=config.heldout_fraction,
        overlong=config.overlong,
        tools=() if talks is None else talks.tools.for_template,
    )
    _tell(job, prompts, length)
    rewards = Rewards(config.rewards, config.reward_timeout_s, _scorer(job))
    if _judges(job):
        rewards.check(prompts.kept)
    server = Server(config.server, tokenizer, given.data) if config.server.url else None
    model = open_model(given, tokenizer, config.base)
    start = adapter.begin(model, config.lora, config.seed)
    if config.policy.baseline == "value":
        scoring.add_head(model)
    steps = config.steps or _steps(config, len(prompts.kept))
    replay = Replay(job, prompts.kept) if "replay" in job.inputs else None
    if replay is not None:
        replay.check_enough(steps)
    kept = replay is not None and replay.keeps_reference and config.needs_reference
    reference = None if kept else _reference(job)
    asked = Asked(job, tokenizer, prompts.kept, rewards, reference, fill_id(given, tokenizer), replay, server, talks)
    objective = PolicyObjective(asked, config)
    held = HeldOutPrompts(asked, prompts.held, config) if prompts.held else None
    fitted = fit(job, model, objective, steps=steps, heldout_rows=held, measured_before=True)
    if fitted.weights is None:  # the leader publishes
        return Product(checkpoint.SCHEMA)
    fitted.weights.pop(scoring.WEIGHT, None)  # what was expected of answers is of no use to who asks for one
    rows = gathered(sorted((job.work / FOLDER).glob("*.parquet")), job.out / FILE)
    totals: dict[str, int | float | str] = {
        "prompts": len(prompts.kept),
        "dropped.overlong": len(prompts.overlong),
        "answers": rows,
        "logprob_gap": _largest_gap(job.metrics_file),
        **_before(job.metrics_file),
    }
    asked_about = job.inputs.get("prompts")
    about_held = isinstance(asked_about, Artifact) and "heldout_fraction" in asked_about.manifest.semantic
    facts = checkpoint.tuned_facts(given, length, 0.0 if about_held else None)  # a quiz asks about what was held out
    facts["chat"] = chat
    product = checkpoint.publish_tuned(job, fitted, model, start, semantic=facts, totals=totals)
    return Product(product.schema, product.semantic, product.totals, {**product.files, FILE: FileFacts(rows=rows)})


def _talks(config: GrpoConfig, tokenizer: Tokenizer, length: int, *, chat: bool) -> Talks | None:
    """What runs the policy's calls, where it may make any.

    Raises:
        InputError: the checkpoint's chats cannot hold them, or this system cannot run them.
        UsageError: the policy does not speak in chats.
    """
    if not config.tools.names:
        return None
    if not chat:
        raise UsageError("tools are called in chats, and the policy takes text", hint="chat=true, or train it by sft")
    return Talks(tokenizer, config.tools, length)


def _check_given(job: Job[GrpoConfig]) -> None:
    """What can be told of the inputs before a rank is started or a prompt is read; errors are those of `run`."""
    config = job.config
    if ("prompts" in job.inputs) == (config.gym is not None):
        told = "neither" if config.gym is None else "both"
        raise UsageError(f"grpo takes one of prompts and gym, and got {told}", hint="give --prompts REF or --gym TASKS")
    if "reference" in job.inputs and not config.needs_reference:
        raise UsageError("policy.kl.weight is 0, so no reference is looked at", hint="leave out --reference")
    if "replay" in job.inputs and config.server.url:
        raise UsageError("a replay draws nothing, and server.url is given", hint="leave out one of them")
    scorer = job.artifact("scorer") if "scorer" in job.inputs else None
    if scorer is not None or _judges(job):
        check_scorer(config.rewards, scorer)
    if scorer is None:
        return
    policy = job.artifact()
    check_same_tokens(policy, scorer, hint="policy and reward model must read the same ids")
    length, reads = longest(policy, config.max_tokens), context_of(scorer)
    if length > reads:
        raise InputError(
            f"a prompt with its answer may have {length} tokens, and {scorer.ref} reads {reads}",
            hint=f"give max_tokens={reads}, or a reward model that reads more",
        )


def _judges(job: Job[GrpoConfig]) -> bool:
    """Whether answers are judged: those that are learned from again have been, and held-out ones are given anew."""
    return "replay" not in job.inputs or job.config.heldout_fraction > 0


def _questions(job: Job[GrpoConfig]) -> tuple[Iterable[Question], str]:
    """What is asked, and where it comes from."""
    gym = job.config.gym
    if gym is not None:
        return gym_questions(gym), "reasoning-gym"
    return prompts_of(job.inputs["prompts"]), job.inputs["prompts"].ref


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
        return None
    policy = job.artifact()
    given = job.artifact("reference") if "reference" in job.inputs else policy
    check_same_tokens(policy, given)
    base = job.config.base if given.digest == policy.digest else "full"  # what it starts from is what it stays close to
    device = _device(job)
    model = open_model(given, open_tokenizer(given), base).to(device).eval()
    set_backend(model, job.config.precision, device, job.config.attention_backend)
    return model.requires_grad_(False)


def _scorer(job: Job[GrpoConfig]) -> Score | None:
    """The reward model, where one is given and answers are judged."""
    if "scorer" not in job.inputs or not _judges(job):
        return None
    return scorer_of(job.artifact("scorer").data, _device(job), torch.float32)


def _device(job: Job[GrpoConfig]) -> torch.device:
    """Where this rank computes."""
    return choose_device(job.config.device, environment().local_rank)


def _tell(job: Job[GrpoConfig], prompts: Prompts, length: int) -> None:
    """Say what is not learned from."""
    overlong = len(prompts.overlong)
    if overlong:
        every = overlong + len(prompts.kept) + len(prompts.held)
        room = length - job.config.max_new_tokens
        job.progress.note(f"dropped {overlong} prompts longer than {room} tokens of {every}")
