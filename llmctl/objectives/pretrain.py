"""The stage `pretrain`: a decoder from scratch, on packed rows."""

from __future__ import annotations

from llmctl.config.errors import InputError, UsageError
from llmctl.config.train import PretrainConfig
from llmctl.model.transformer import Transformer
from llmctl.objectives import checkpoint
from llmctl.objectives.losses import NextToken
from llmctl.pipeline.job import Job, Product
from llmctl.tokens.rows import Rows
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.train import launch
from llmctl.train.heldout import HeldOutRows
from llmctl.train.loop import fit


def run(job: Job[PretrainConfig]) -> Product:
    """Train in this process, or with ranks where the configuration or a launcher asks for them."""
    return launch.start(job, "llmctl.objectives.pretrain:train")


def train(job: Job[PretrainConfig]) -> Product:
    """What every rank runs.

    Raises:
        InputError: there is nothing to train on.
        UsageError: the rows are longer than the model's context.
    """
    given = job.artifact()
    rows, held = Rows.open(given, "train"), Rows.open(given, "heldout")
    if rows.count == 0:
        raise InputError(f"{given.ref} holds no training rows", hint="lower heldout_fraction of pack, or add documents")
    found = job.artifact("tokenizer")
    tokenizer = Tokenizer.open(found.data)
    config = job.config.model
    if config.context < rows.seq_len:
        raise UsageError(
            f"rows of {rows.seq_len} tokens are longer than the model's context of {config.context}",
            hint=f"set model.context={rows.seq_len}, or pack with --seq-len {config.context}",
        )
    _check_dial(job, rows.seq_len, tokenizer.vocab_size)
    model = Transformer(config, tokenizer.vocab_size)
    model.init_weights(job.config.seed)
    held_out = HeldOutRows(held, tokenizer.byte_lengths) if held.count else None
    seen = job.config.batches.first_of(job.config.steps)
    fitted = fit(job, model, NextToken(rows, job.config.z_loss), steps=job.config.steps, heldout_rows=held_out)
    return checkpoint.publish(
        job,
        fitted,
        config,
        tokenizer_directory=found.data,
        semantic={
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": found.digest,
            "seq_len": rows.seq_len,
            **checkpoint.unseen(given),
        },
        totals={"epochs": seen / rows.count},
    )


def _check_dial(job: Job[PretrainConfig], seq_len: int, vocab_size: int) -> None:
    """Hold what the dial took for granted against the rows.

    Raises:
        UsageError: rows of another length, so that the number of steps is wrong.
    """
    dial = job.config.dial
    if dial is None:
        return
    if dial.seq_len != seq_len:
        raise UsageError(
            f"the dial reckons with rows of {dial.seq_len} tokens, and these have {seq_len}",
            hint=f"add dial.seq_len={seq_len}",
        )
    if dial.vocab_size != vocab_size:
        job.progress.note(
            f"the dial reckoned with {dial.vocab_size} ids, and the tokenizer has {vocab_size}: "
            f"dial.vocab_size={vocab_size} would suit it"
        )
