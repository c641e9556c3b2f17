"""The same documents laid into rows in different ways, and a step of the real loop on each; also an entry of ranks."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from synthetic_run import VOCAB, WIDE, Counting, curve, make_job

from llmctl.model.transformer import Transformer
from llmctl.pipeline.job import Product
from llmctl.tokens.batch import IGNORE, PADDING_DOCUMENT, Batch
from llmctl.train.loop import fit
from llmctl.train.ranks import environment

LONGEST = 18


def documents():
    """Fourteen documents of 2 to 18 ids."""
    random = np.random.default_rng(5)
    return [random.integers(4, VOCAB, size=length) for length in random.integers(2, LONGEST + 1, size=14)]


@dataclass(frozen=True)
class Layout:
    """How documents lie in rows: in which order, in rows of which length, with how many blank rows among them."""

    order: tuple[int, ...]
    seq_len: int
    blank_rows: int = 0

    def rows(self):
        """Document numbers of each row: each document goes to the row before, if it still fits; blank rows first."""
        lengths = [len(document) for document in documents()]
        rows = [[]]
        for number in self.order:
            if sum(lengths[other] for other in rows[-1]) + lengths[number] > self.seq_len:
                rows.append([])
            rows[-1].append(number)
        return [[] for _ in range(self.blank_rows)] + rows


class Laid:
    """A source of the rows of a layout, filled up with blank rows to a multiple of four."""

    def __init__(self, layout):
        self.layout = layout
        self.rows = layout.rows()
        self.rows += [[] for _ in range(-len(self.rows) % 4)]
        self.count = len(self.rows)

    def batch(self, indices):
        made = [self._row(self.rows[int(index)]) for index in indices]
        return Batch(*(np.stack(column) for column in zip(*made, strict=True)))

    def _row(self, numbers):
        length = self.layout.seq_len
        tokens, positions = np.full(length, 3, dtype=np.int64), np.zeros(length, dtype=np.int64)
        owners, labels = np.full(length, PADDING_DOCUMENT, dtype=np.int32), np.full(length, IGNORE, dtype=np.int64)
        at = 0
        for place, number in enumerate(numbers):
            ids = documents()[number]
            part = slice(at, at + len(ids))
            tokens[part], positions[part], owners[part] = ids, np.arange(len(ids)), place
            labels[at : at + len(ids) - 1] = ids[1:]
            at += len(ids)
        return tokens, positions, owners, labels


PLAIN = tuple(range(14))
LAYOUTS = {
    "one document a row": Layout(PLAIN, LONGEST),
    "tight rows": Layout(PLAIN[::-1], 24),
    "wide rows and blank ones": Layout(PLAIN[::2] + PLAIN[1::2], 50, blank_rows=3),
    "all in one row": Layout(PLAIN, 160),
}


def take_a_step(directory, layout, held=None, **fields):
    """Two steps, of which the first leaves its state behind."""
    rows = Laid(layout)
    fixed = {"steps": 2, "checkpoint_every_steps": 1, "eval_every_steps": 0, "clip_norm": 1e9}
    job = make_job(directory, **fixed, batch_rows=rows.count, **fields)
    model = Transformer(job.config.model, VOCAB)
    model.init_weights(0)
    objective = Counting()
    objective.rows = rows
    return fit(job, model, objective, steps=2, heldout_rows=held)


def loss_and_gradient(directory):
    """Of the first step: Adam's first average is the gradient times 1 - beta."""
    directory = Path(directory)
    job = make_job(directory)
    parts = [load_file(path) for path in sorted((job.work / "step-000001").glob("part-*"))]
    averages = {key: value for part in parts for key, value in part.items() if key.startswith("exp_avg/")}
    return curve(job)[0]["loss"], averages


def splits(nproc):
    """Name, layout and fields of each way that ranks are to try."""
    for zero, layout in enumerate(LAYOUTS.values()):
        for micro in (1, 3) if nproc == 2 else (2,):
            yield f"zero-{zero}-micro-{micro}", layout, {"nproc": nproc, "zero": zero, "micro_batch_rows": micro}


def train_splits(job):
    """The entry of every rank: all the ways, one after another, in directories of their own."""
    for name, layout, fields in splits(environment().world_size):
        take_a_step(job.out / name, layout, model=WIDE, **fields)
    return Product("llmctl.checkpoint/1")
