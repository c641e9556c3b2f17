"""A small run on made-up rows, also as a program and as an entry of ranks: real model, real loop, real files."""

import ast
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmctl.config.train import PretrainConfig
from llmctl.model.transformer import Transformer
from llmctl.objectives.losses import next_token
from llmctl.pipeline.job import Job, Product, Silent
from llmctl.tokens.batch import IGNORE, PADDING_DOCUMENT, Batch
from llmctl.train.heldout import HeldOutRows
from llmctl.train.loop import fit

VOCAB = 64
SEQ_LEN = 24
MODEL = {"name": "nano", "width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "ffn_width": 32}
WIDE = {"name": "nano", "width": 128, "layers": 2, "heads": 2, "kv_heads": 1, "ffn_width": 1024}
# A matrix of more than 100,000 elements is sharded under ZeRO 3; smaller ones stay whole on every rank.
FIELDS = {"model": WIDE, "steps": 6, "micro_batch_rows": 3, "eval_every_steps": 4}


class Way(NamedTuple):
    """How ranks are to train, and at which ZeRO stages."""

    fields: dict[str, Any]
    stages: tuple[int, ...]


WAYS = {
    "plain": Way(FIELDS, (0, 1, 2, 3)),
    "muon": Way({**FIELDS, "optimizer": {"name": "muon", "lr": 1e-3}}, (0, 1, 2, 3)),
    "lion": Way({**FIELDS, "optimizer": {"name": "lion", "lr": 1e-3}}, (2,)),
    "growing": Way(  # 1, 1, 1, 2, 2 and 3 micro-batches of each of two ranks
        {
            "model": WIDE,
            "steps": 6,
            "micro_batch_rows": 1,
            "eval_every_steps": 0,
            "batch_rows": 6,
            "batch_ramp": {"start_rows": 2, "steps": 5},
        },
        (0, 2, 3),
    ),
    "fp16": Way({**FIELDS, "precision": "fp16", "recompute": "full"}, (0, 3)),
    "bf16": Way({**FIELDS, "precision": "bf16"}, (3,)),
}


class MadeUpRows:
    """Rows of one to three documents that count upwards by a step of their own, with padding at the end."""

    def __init__(self, count, salt=0):
        self.count = count
        self.salt = salt

    def batch(self, indices):
        rows = [self._row(int(index)) for index in indices]
        return Batch(*(np.stack(column) for column in zip(*rows, strict=True)))

    def _row(self, index):
        random = np.random.default_rng([self.salt, index])
        tokens = np.full(SEQ_LEN, 3, dtype=np.int64)
        positions = np.zeros(SEQ_LEN, dtype=np.int64)
        documents = np.full(SEQ_LEN, PADDING_DOCUMENT, dtype=np.int32)
        labels = np.full(SEQ_LEN, IGNORE, dtype=np.int64)
        at = 0
        for document in range(int(random.integers(1, 4))):
            length = int(random.integers(3, 9))
            values = (random.integers(VOCAB) + random.integers(1, 4) * np.arange(length)) % VOCAB
            part = slice(at, at + length)
            tokens[part], positions[part], documents[part] = values, np.arange(length), document
            labels[at : at + length - 1] = values[1:]
            at += length
        return tokens, positions, documents, labels


class Counting:
    def __init__(self, count=40):
        self.rows = MadeUpRows(count)

    def loss(self, model, batch):
        return next_token(model, batch)


def train(job):
    """The entry of every rank; rank 0 writes the weights."""
    from safetensors.torch import save_file

    model = Transformer(job.config.model, VOCAB)
    model.init_weights(job.config.seed)
    lengths = np.ones(VOCAB, dtype=np.int32)
    lengths[:4] = 0
    held = HeldOutRows(MadeUpRows(7, salt=1), lengths)
    fitted = fit(job, model, Counting(), steps=job.config.steps, heldout_rows=held)
    if fitted.weights is not None:
        save_file(fitted.weights, job.out / "model.safetensors")
    return Product("llmctl.checkpoint/1", totals=fitted.totals)


def make_job(directory, progress=None, **fields):
    values = {
        "model": MODEL,
        "steps": 12,
        "batch_rows": 8,
        "precision": "fp32",
        "threads": 1,
        "checkpoint_every_steps": 3,
        "eval_every_steps": 5,
        "device": "cpu",
        **fields,
    }
    directory = Path(directory)
    for name in ("data", "work"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    return Job(
        config=PretrainConfig.model_validate(values),
        inputs={},
        out=directory / "data",
        work=directory / "work",
        metrics_file=directory / "metrics.jsonl",
        progress=progress or Silent(),
        nested=None,
    )


class StopAfter:
    """A user who interrupts once so many steps are done."""

    def __init__(self, step):
        self.step = step
        self.notes = []

    def update(self, done, total, unit, **facts):
        if done >= self.step:
            self.step = float("inf")
            os.kill(os.getpid(), signal.SIGINT)

    def note(self, text):
        self.notes.append(text)


CURVE = ("step", "loss", "lr", "grad_norm", "tokens", "heldout_loss", "heldout_bits_per_byte", "heldout_targets")


def curve(job):
    """The metrics rows without their times."""
    rows = [json.loads(line) for line in job.metrics_file.read_text().splitlines()]
    return [{key: row[key] for key in CURVE if key in row} for row in rows]


def train_to_divergence(job):
    """Fails on every rank, as a real divergence does."""

    class Exploding(Counting):
        def loss(self, model, batch):
            return super().loss(model, batch) * float("inf")

    model = Transformer(job.config.model, VOCAB)
    model.init_weights(0)
    fit(job, model, Exploding(), steps=1, heldout_rows=None)


def train_counting_orthogonalisations(job):
    """As `train`; each rank leaves the number of its Newton-Schulz calls in the output folder."""
    from llmctl.train import muon
    from llmctl.train.ranks import environment

    calls, real = [], muon.newton_schulz

    def counted(*given):
        calls.append(given[0].shape)
        return real(*given)

    muon.newton_schulz = counted
    product = train(job)
    muon.newton_schulz = real
    (job.out / f"calls-{environment().rank}").write_text(str(len(calls)))
    return product


def train_ways(job):
    """All the ways at all their stages, one after another, in directories of their own."""
    for name, (fields, stages) in WAYS.items():
        for zero in stages:
            train_counting_orthogonalisations(make_job(job.out / f"{name}-{zero}", **fields, nproc=2, zero=zero))
    return Product("llmctl.checkpoint/1")


def hang_on_rank_1(job):
    """Rank 1 never comes back from the forward pass of its third step."""
    from llmctl.train.ranks import environment

    class Hanging(Counting):
        seen = 0

        def loss(self, model, batch):
            self.seen += 1
            if environment().rank == 1 and self.seen == 5:  # two micro-batches a step
                time.sleep(3600)
            return super().loss(model, batch)

    model = Transformer(job.config.model, VOCAB)
    model.init_weights(0)
    fit(job, model, Hanging(), steps=job.config.steps, heldout_rows=None)


def die_on_rank_1(job):
    from llmctl.train.ranks import environment

    if environment().rank == 1:
        raise RuntimeError("rank 1 gives up")
    return train(job)


def main(words):
    """`[--local_rank=N] DIRECTORY FIELDS`: alone, or as one of a launcher's ranks."""
    from llmctl.train import launch
    from llmctl.train.ranks import environment

    directory, fields = [word for word in words if not word.startswith("--local_rank")]
    if environment().rank:
        launch.follow()
    else:
        launch.start(make_job(directory, **ast.literal_eval(fields)), "synthetic_run:train")
        launch.dismiss()
    launch.leave(0)


if __name__ == "__main__":
    main(sys.argv[1:])
