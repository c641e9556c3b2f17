"""The stage `pretrain`: a decoder from scratch, on packed rows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from llmctl.config.errors import InputError, UsageError
from llmctl.config.train import PretrainConfig
from llmctl.model.transformer import Transformer
from llmctl.objectives import checkpoint
from llmctl.objectives.losses import next_token
from llmctl.pipeline.job import Job, Product
from llmctl.store.artifact import Artifact
from llmctl.tokens.rows import Rows
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.train import launch
from llmctl.train.likelihood import Tensors
from llmctl.train.loader import RowSource
from llmctl.train.loop import HeldOutRows, fit


@dataclass(frozen=True)
class NextToken:
    """The objective of a language model: each token from those before it in its document."""

    rows: RowSource

    def loss(self, model: Transformer, batch: Tensors) -> Tensor:
        """`losses.next_token`."""
        return next_token(model, batch)


def run(job: Job[PretrainConfig]) -> Product:
    """Train in this process, or with ranks where the configuration or a launcher asks for them."""
    return launch.start(job, "llmctl.objectives.pretrain:train")


def train(job: Job[PretrainConfig]) -> Product:
    """What every rank runs.

    Raises:
        InputError: rows and tokenizer do not belong together, or there is nothing to train on.
        UsageError: the rows are longer than the model's context.
    """
    given = job.artifact()
    rows, held = Rows.open(given, "train"), Rows.open(given, "heldout")
    if rows.count == 0:
        raise InputError(f"{given.ref} holds no training rows", hint="lower heldout_fraction of pack, or add documents")
    found = tokenizer_of(job, given)
    tokenizer = Tokenizer.open(found.data)
    _require_match(given, found, tokenizer)
    config = job.config.model
    if config.context < rows.seq_len:
        raise UsageError(
            f"rows of {rows.seq_len} tokens are longer than the model's context of {config.context}",
            hint=f"set model.context={rows.seq_len}, or pack with --seq-len {config.context}",
        )
    model = Transformer(config, tokenizer.vocab_size)
    model.init_weights(job.config.seed)
    held_out = HeldOutRows(held, tokenizer.byte_lengths) if held.count else None
    fitted = fit(job, model, NextToken(rows), steps=job.config.steps, heldout_rows=held_out)
    return checkpoint.publish(
        job,
        fitted,
        config,
        tokenizer_directory=found.data,
        semantic={"vocab_size": tokenizer.vocab_size, "tokenizer": found.digest, "seq_len": rows.seq_len},
        totals={"epochs": job.config.steps * job.config.batch_rows / rows.count},
    )


def tokenizer_of(job: Job[PretrainConfig], rows: Artifact) -> Artifact:
    """The tokenizer that made the rows' ids, through their lineage: rows, tokens, tokenizer."""
    return job.ancestor(rows if "tokenizer" in rows.manifest.inputs else job.ancestor(rows, "input"), "tokenizer")


def _require_match(rows: Artifact, found: Artifact, tokenizer: Tokenizer) -> None:
    """Refuse rows whose ids mean something else to the tokenizer."""
    facts = rows.manifest.semantic
    if facts["tokenizer"] != found.digest:
        raise InputError(
            f"{rows.ref} was packed with the tokenizer {facts['tokenizer']}, its lineage leads to {found.digest}",
            hint="pack again",
        )
    if facts["vocab_size"] != tokenizer.vocab_size:
        raise InputError(
            f"{rows.ref} has ids below {facts['vocab_size']}, its tokenizer has {tokenizer.vocab_size}",
            hint="pack again",
        )
