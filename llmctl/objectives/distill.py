"""The stage `distill`: a student, or adapters of one, fitted to the next-token distributions of a teacher."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from llmctl.config.distill import DistillConfig
from llmctl.config.dpo import LogprobsConfig
from llmctl.config.errors import UsageError
from llmctl.model.config_json import CONFIG_FILE, read_config
from llmctl.model.device import choose_device
from llmctl.model.kernels import set_backend
from llmctl.model.transformer import Transformer
from llmctl.objectives import adapter, checkpoint
from llmctl.objectives.chats import PackedChats
from llmctl.objectives.distilled import PROJECTION_WEIGHT, Distillation, HeldOutTaught, add_projection
from llmctl.objectives.foreign import Foreign, ForeignRows, read_foreign
from llmctl.objectives.foreign_answers import ForeignAlone, Reader
from llmctl.objectives.on_policy import Alone, OnPolicy
from llmctl.objectives.start import check_same_tokens, context_of, fill_id, longest, open_model, open_tokenizer
from llmctl.objectives.teachers import Kept, Live, Teaching
from llmctl.objectives.texts import Texts, read_texts, role_of
from llmctl.objectives.top_logprobs import check_made_for, check_top_k, taught_sides
from llmctl.pipeline.job import Job, Product
from llmctl.store.artifact import Artifact
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.train import launch
from llmctl.train.loader import RowSource
from llmctl.train.ranks import environment

NEEDS_TEACHER = {"on_policy": "texts that nobody knows before", "hidden": "states to compare that are not kept"}


def run(job: Job[DistillConfig]) -> Product:
    """Score the text under the teacher first, where its likeliest tokens are kept; train here, or with ranks.

    Raises:
        InputError: student, teacher and text do not read the same ids, or kept figures are of others.
        UsageError: there is no student or there are two, or texts are longer than a model reads.
    """
    teacher, config = job.artifact(), job.config
    role = role_of(job)
    _check_student(job)
    if config.on_policy is not None and role != "chats":
        raise UsageError("on_policy answers chats, and rows are given", hint="give --chats REF, or leave out on_policy")
    if _is_foreign(config) and role != "chats":
        raise UsageError("uld reads chats by both tokenizers, and rows are given", hint="give --chats REF")
    if _is_foreign(config) and "logprobs" in job.inputs:
        raise UsageError("uld asks the teacher itself, and --logprobs is given", hint="leave out one of them")
    for name, reason in NEEDS_TEACHER.items():
        if getattr(config, name) is not None and "logprobs" in job.inputs:
            raise UsageError(f"{name} has {reason}, and --logprobs is given", hint="leave out one of them")
    if "logprobs" in job.inputs:
        check_made_for(job.artifact("logprobs"), config, teacher, role, job.inputs[role])
    elif config.top_k is not None:
        check_top_k(config.top_k, int(teacher.manifest.semantic["vocab_size"]))
        _texts(job, open_tokenizer(teacher))  # what is wrong with them is told before the teacher works
        wanted = LogprobsConfig(
            max_tokens=_length(job) if role == "chats" else None,
            overlong=config.overlong,
            learn=config.learn,
            top_k=config.top_k,
            base="full",
            temperature=config.loss.temperature,
            precision=config.precision,
            device=config.device,
            threads=config.threads,
        )
        kept = job.nested("logprobs", wanted, {"input": teacher, role: job.inputs[role]})
        job = dataclasses.replace(job, inputs={**job.inputs, "logprobs": kept})
    return launch.start(job, "llmctl.objectives.distill:train")


def _texts(job: Job[DistillConfig], tokenizer: Tokenizer) -> Texts:
    config = job.config
    return read_texts(
        job,
        tokenizer,
        _length(job),
        overlong=config.overlong,
        learn=config.learn,
        fraction=config.heldout_fraction,
    )


def _check_student(job: Job[DistillConfig]) -> None:
    """Refuse a student that reads other ids than its teacher, two students, and none."""
    fresh, given = job.config.model, "student" in job.inputs
    if not given and _is_foreign(job.config):
        raise UsageError("uld teaches a student that has a tokenizer of its own", hint="give --student REF")
    if fresh is None and not given:
        raise UsageError("there is no student", hint="give --student REF, or --model tiny for a fresh one")
    if fresh is not None and given:
        raise UsageError("--student and --model are both given", hint="a student that exists has its shape")
    if given and not _is_foreign(job.config):
        check_same_tokens(
            job.artifact(),
            job.artifact("student"),
            templates=role_of(job) == "chats",
            hint="--loss uld teaches across tokenizers; or give --model for a fresh student with the teacher's",
        )


def _is_foreign(config: DistillConfig) -> bool:
    """Whether the teacher reads by its own tokens."""
    return config.loss.name == "uld"


def _length(job: Job[DistillConfig]) -> int:
    """Longest text that both models read.

    Raises:
        UsageError: more was asked for.
    """
    wanted, fresh = job.config.max_tokens, job.config.model
    context = fresh.context if fresh else context_of(job.artifact("student"))
    if role_of(job) == "rows":  # of whatever length they are
        return min(context, context_of(job.artifact()))
    if _is_foreign(job.config):
        return longest(job.artifact("student"), wanted)
    length = longest(job.artifact(), wanted)
    if wanted is not None and wanted > context:
        raise UsageError(f"max_tokens ({wanted}) exceeds the student's context of {context}", hint="give fewer")
    return min(length, context)


def train(job: Job[DistillConfig]) -> Product:
    """What every rank runs.

    Raises:
        InputError: a chat cannot be learned from, or nothing is left to learn from.
        UsageError: rows are longer than a model's context.
    """
    config = job.config
    tokenizer = open_tokenizer(_source(job))
    texts, teaching, kept, held = _taught(job, tokenizer)
    model = _student(job, tokenizer)
    start = adapter.begin(model, config.lora, config.seed)
    if config.hidden is not None:
        add_projection(model, read_config(job.artifact().data / CONFIG_FILE).config.width, config.seed)
    objective = Distillation(kept, teaching, config)
    if config.on_policy is not None:
        assert isinstance(texts.kept.rows, PackedChats), "`run` has seen that they are chats"
        sizes = (texts.seq_len, texts.kept.rows.pad_id)
        if isinstance(kept, ForeignRows):
            reader = Reader(tokenizer, open_tokenizer(job.artifact()), context_of(job.artifact()))
            alone: Alone = ForeignAlone(kept, *sizes, reader)
        else:
            alone = Alone(texts.kept.rows.chats, *sizes)
        objective = OnPolicy(alone, teaching, config, stop_ids=tuple(tokenizer.stop_ids))
    fitted, totals = checkpoint.fit_tuned(
        job,
        model,
        objective,
        HeldOutTaught(held, tokenizer.byte_lengths, objective) if held.count else None,
        unit=texts.role,
        kept=texts.kept.numbers.size,
        held=texts.held.numbers.size,
        overlong=texts.overlong,
    )
    if fitted.weights is not None:
        fitted.weights.pop(PROJECTION_WEIGHT, None)
    facts = _facts(job, texts)
    if isinstance(kept, ForeignRows):
        reached, targets = kept.reached
        totals |= {"compared": reached / targets}
    return checkpoint.publish_tuned(job, fitted, model, start, semantic=facts, totals=totals, source=_source(job))


def _source(job: Job[DistillConfig]) -> Artifact:
    """Whose tokenizer the student carries."""
    return job.artifact("student" if "student" in job.inputs else "input")


def _student(job: Job[DistillConfig], tokenizer: Tokenizer) -> Transformer:
    if "student" in job.inputs:
        return open_model(job.artifact("student"), tokenizer, job.config.base)
    assert job.config.model is not None, "`run` has seen that there is a student"
    model = Transformer(job.config.model, tokenizer.vocab_size)
    model.init_weights(job.config.seed)
    return model


def _taught(job: Job[DistillConfig], tokenizer: Tokenizer) -> tuple[Texts, Teaching, RowSource, RowSource]:
    """The text, where the teacher's distributions come from, and rows to learn from and held out with what it needs."""
    config, given = job.config, job.artifact()
    device = choose_device(config.device, environment().local_rank)
    if _is_foreign(config):
        ours = (tokenizer, _length(job), fill_id(_source(job), tokenizer))
        theirs = open_tokenizer(given)
        texts, kept, held = read_foreign(job.inputs["chats"], config, ours, (theirs, context_of(given)))
        reached, targets = kept.reached
        job.progress.note(f"the teacher stands behind the same bytes at {reached} of {targets} targets")
        return texts, Foreign(_teacher(job, theirs, device)), kept, held
    texts = _texts(job, tokenizer)
    if "logprobs" in job.inputs:
        return texts, Kept(config.rest), *taught_sides(job.artifact("logprobs"), texts)
    return texts, Live(_teacher(job, tokenizer, device)), texts.kept.rows, texts.held.rows


def _teacher(job: Job[DistillConfig], tokenizer: Tokenizer, device: torch.device) -> Transformer:
    teacher = open_model(job.artifact(), tokenizer).to(device)
    job.progress.note(
        f"the teacher: {set_backend(teacher, job.config.precision, device, job.config.attention_backend)}"
    )
    return teacher


def _facts(job: Job[DistillConfig], texts: Texts) -> dict[str, Any]:
    source = _source(job)
    given = [job.artifact(role) for role in ("input", "student") if role in job.inputs]
    known = {name: source.manifest.semantic[name] for name in ("vocab_size", "tokenizer")}
    chat = texts.role == "chats" or bool(source.manifest.semantic.get("chat"))
    unseen = checkpoint.unseen(*given, fraction=texts.heldout_fraction)
    return {**known, "seq_len": texts.seq_len, **({"chat": True} if chat else {}), **unseen}
