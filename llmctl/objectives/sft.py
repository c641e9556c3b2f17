"""The stage `sft`: a checkpoint fine-tuned on chats, with the loss on the assistant's tokens only."""

from __future__ import annotations

import torch

from llmctl.config.errors import InputError, UsageError
from llmctl.config.train import SftConfig, steps_of_epochs
from llmctl.model import huggingface
from llmctl.model.transformer import Transformer
from llmctl.objectives import checkpoint
from llmctl.objectives.chats import PackedChats, Sides, read_sides
from llmctl.objectives.losses import NextToken
from llmctl.pipeline.job import Job, Product
from llmctl.store.artifact import Artifact
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.train import launch
from llmctl.train.heldout import HeldOutRows
from llmctl.train.loop import fit


def run(job: Job[SftConfig]) -> Product:
    """Train in this process, or with ranks where the configuration or a launcher asks for them."""
    return launch.start(job, "llmctl.objectives.sft:train")


def train(job: Job[SftConfig]) -> Product:
    """What every rank runs.

    Raises:
        InputError: a chat cannot be learned from, or checkpoint and tokenizer do not belong together.
        UsageError: rows longer than the model's context were asked for.
    """
    given = job.artifact()
    tokenizer = Tokenizer.open(given.data).padded(int(given.manifest.semantic["vocab_size"]))
    model = open_model(given, tokenizer)
    length = job.config.max_tokens or int(given.manifest.semantic.get("seq_len", model.config.context))
    if length > model.config.context:
        raise UsageError(
            f"max_tokens ({length}) exceeds the model's context of {model.config.context}",
            hint=f"give at most {model.config.context}",
        )
    chats = read_sides(job.inputs["chats"], tokenizer, length, job.config.heldout_fraction)
    _tell(job, chats, length)
    rows, held = (PackedChats(side, length, tokenizer.pad_id) for side in (chats.kept, chats.held))
    batches = job.config.batches
    steps = job.config.steps or steps_of_epochs(job.config.epochs, rows.count, batches)
    held_out = HeldOutRows(held, tokenizer.byte_lengths) if held.count else None
    fitted = fit(job, model, NextToken(rows), steps=steps, heldout_rows=held_out)
    return checkpoint.publish(
        job,
        fitted,
        model.config,
        tokenizer_directory=given.data,
        semantic={
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": given.manifest.semantic["tokenizer"],
            "seq_len": length,
            "chat": True,
            **checkpoint.unseen(given, chats.heldout_fraction),
        },
        totals={
            "chats": len(rows.chats),
            "heldout_chats": len(held.chats),
            "dropped.overlong": len(chats.overlong),
            "rows": rows.count,
            "epochs": batches.first_of(steps) / rows.count,
        },
    )


def _tell(job: Job[SftConfig], chats: Sides, length: int) -> None:
    """Say what is not trained on, or refuse it."""
    overlong = len(chats.overlong)
    if overlong and job.config.overlong == "error":
        raise InputError(
            f"{chats.overlong[0]}, more than {length}; {overlong} in all are too long",
            hint="raise max_tokens up to the model's context, or overlong=drop",
        )
    if overlong:
        given = len(chats.kept) + len(chats.held) + overlong
        job.progress.note(f"dropped {overlong} chats longer than {length} tokens of {given}")
    if not chats.held:
        job.progress.note("no chat is held out, so there is no held-out loss")


def open_model(given: Artifact, tokenizer: Tokenizer) -> Transformer:
    """The checkpoint's model in fp32, in memory of its own, after checking that the tokenizer fits it.

    Raises:
        InputError: the vocabularies differ, or padding would end a turn.
    """
    stored = huggingface.load(given.data, dtype=torch.float32)
    if stored.vocab_size != tokenizer.vocab_size:
        raise InputError(
            f"{given.ref}: the model has {stored.vocab_size} ids, its tokenizer {tokenizer.vocab_size}",
            hint="the files are not of one checkpoint",
        )
    if tokenizer.pad_id in tokenizer.stop_ids:
        raise InputError(
            f"{given.ref}: the padding id {tokenizer.pad_id} also ends a turn, so the end would never be learned",
            hint="give the tokenizer a pad token of its own",
        )
    stored.load_state_dict({name: value.clone() for name, value in stored.state_dict().items()}, assign=True)
    return stored
