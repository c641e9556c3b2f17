"""A teacher's likeliest tokens at every target of a text, computed once and kept (schema llmctl.top-logprobs/1).

`ids.bin` int32 [targets, K], likeliest first; `logprobs.bin` float32 [targets, K + 1], of these and of all other
tokens together; `first.bin` int64 [units + 1], the first target of each unit (`llmctl.objectives.texts`). The
probabilities are those under the temperature that the manifest names: the mass of the others cannot be had from those
under another one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmctl.config.distill import DistillConfig
from llmctl.config.dpo import LogprobsConfig
from llmctl.config.errors import InputError, IntegrityError, UsageError
from llmctl.model.device import choose_device, product_dtype
from llmctl.model.kernels import set_backend
from llmctl.model.likelihood import LOGITS_AT_ONCE, Tensors, hidden_states
from llmctl.model.transformer import Transformer
from llmctl.objectives.divergences import likeliest, tempered
from llmctl.objectives.start import context_of, longest, open_model, open_tokenizer
from llmctl.objectives.texts import Side, Texts, read_texts
from llmctl.pipeline.job import FileFacts, Job, Product
from llmctl.store.artifact import Artifact, Input
from llmctl.tokens.batch import IGNORE, Batch
from llmctl.tokens.order import rows_of_step
from llmctl.tokens.rows import mapped, ranges
from llmctl.train.loader import Ordered
from llmctl.train.strategy import set_threads

SCHEMA = "llmctl.top-logprobs/1"
IDS, LOGPROBS, FIRST = "ids.bin", "logprobs.bin", "first.bin"


def score(job: Job[LogprobsConfig]) -> Product:
    """Score every target of chats or rows, held-out ones included.

    Raises:
        InputError: a chat cannot be scored, printed; or the rows are of another tokenizer.
        UsageError: the model has no more than `top_k` tokens.
    """
    given, config = job.artifact(), job.config
    tokenizer = open_tokenizer(given)
    length = longest(given, config.max_tokens) if "chats" in job.inputs else context_of(given)
    texts = read_texts(job, tokenizer, length, overlong=config.overlong, learn=config.learn)
    check_top_k(config.top_k, tokenizer.vocab_size)
    set_threads(config.threads, 1)
    device = choose_device(config.device)
    model = open_model(given, tokenizer).to(device).eval()
    set_backend(model, config.precision, device)
    first = np.concatenate([[0], np.cumsum(texts.counts())])
    first.tofile(job.out / FIRST)
    targets, top = int(first[-1]), config.top_k
    ids = np.memmap(job.out / IDS, dtype=np.int32, mode="w+", shape=(targets, top))
    logprobs = np.memmap(job.out / LOGPROBS, dtype=np.float32, mode="w+", shape=(targets, top + 1))
    _fill(job, model, texts, first, ids, logprobs)
    ids.flush()
    logprobs.flush()
    return Product(
        SCHEMA,
        semantic={
            "tokenizer": given.manifest.semantic["tokenizer"],
            "max_tokens": texts.seq_len,
            "top_k": top,
            "temperature": config.temperature,
        },
        totals={
            "rows": texts.units,
            "tokens": targets,
            "kept_mass": float(np.exp(logprobs[:, :top], dtype=np.float64).sum() / targets),
            "dropped.overlong": texts.overlong,
        },
        files={IDS: FileFacts(rows=texts.units, tokens=targets)},
    )


def check_top_k(top_k: int, vocab_size: int) -> None:
    """Refuse to keep everything: there must be other tokens.

    Raises:
        UsageError: naming the most.
    """
    if top_k >= vocab_size:
        raise UsageError(
            f"top_k ({top_k}) leaves none of {vocab_size} tokens out", hint=f"give at most {vocab_size - 1}"
        )


@torch.inference_mode()
def _fill(
    job: Job[LogprobsConfig],
    model: Transformer,
    texts: Texts,
    first: NDArray[np.int64],
    ids: NDArray[np.int32],
    logprobs: NDArray[np.float32],
) -> None:
    """Write what the model gives each target of both sides to its place."""
    device, dtype = model.device, product_dtype(job.config.precision)
    at_once, done = max(1, job.config.batch_tokens // texts.seq_len), 0
    total = texts.kept.rows.count + texts.held.rows.count
    for side in (texts.kept, texts.held):
        for start in range(0, side.rows.count, at_once):
            rows = np.arange(start, min(start + at_once, side.rows.count))
            batch = Tensors.of(side.rows.batch(rows), device)
            units = np.concatenate([side.units_of(int(row)) for row in rows])
            places = ranges(first[units], first[units + 1] - first[units])
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                hidden = hidden_states(model, batch)[0][batch.labels != IGNORE]
                size = max(1, LOGITS_AT_ONCE // 4 // model.vocab_size)
                for at, part in enumerate(torch.split(hidden, size)):
                    found = likeliest(tempered(model.logits(part), job.config.temperature), job.config.top_k)
                    where = places[at * size : at * size + len(part)]
                    ids[where], logprobs[where] = (one.cpu().numpy() for one in found)
            done += len(rows)
            job.progress.update(done, total, "rows")


class TopRows:
    """Rows with what was kept of a teacher: a `RowSource`.

    `Batch.beside` gets `top_ids` int32 [B,T,K] and `top_logprobs` float32 [B,T,K + 1], at the places of the labels.

    Args:
        side: the rows.
        first: int64 [units + 1], first target of each unit.
        ids: int32 [targets, K].
        logprobs: float32 [targets, K + 1].
    """

    def __init__(
        self, side: Side, first: NDArray[np.int64], ids: NDArray[np.int32], logprobs: NDArray[np.float32]
    ) -> None:
        self.count = side.rows.count
        self._side, self._first, self._ids, self._logprobs = side, first, ids, logprobs

    def rows_of_step(self, seed: int, step: int, batch_rows: int) -> NDArray[np.int64]:
        """In the order of the rows themselves."""
        rows = self._side.rows
        if isinstance(rows, Ordered):
            return rows.rows_of_step(seed, step, batch_rows)
        return rows_of_step(seed, step, batch_rows, self.count)

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """The rows at `indices`, in that order."""
        plain = self._side.rows.batch(indices)
        units = np.concatenate([self._side.units_of(int(row)) for row in indices])
        places = ranges(self._first[units], self._first[units + 1] - self._first[units])
        wanted = plain.labels != IGNORE
        ids = np.zeros((*wanted.shape, self._ids.shape[1]), dtype=np.int32)
        logprobs = np.zeros((*wanted.shape, self._logprobs.shape[1]), dtype=np.float32)
        ids[wanted], logprobs[wanted] = self._ids[places], self._logprobs[places]
        beside = {**plain.beside, "top_ids": ids, "top_logprobs": logprobs}
        return Batch(plain.tokens, plain.positions, plain.documents, plain.labels, plain.units, beside)


def taught_sides(given: Artifact, texts: Texts) -> tuple[TopRows, TopRows]:
    """Both sides of a text with what was kept of the teacher; whose it is, `check_made_for` looks at.

    Raises:
        IntegrityError: it is of other texts, or a file is cut.
    """
    counts, top = texts.counts(), int(given.manifest.semantic["top_k"])
    targets = int(counts.sum())
    first = mapped(given.file(FIRST), np.dtype(np.int64), 8 * (counts.size + 1))
    if not np.array_equal(np.diff(first), counts):
        raise IntegrityError(
            f"{given.ref} does not hold the log-probabilities of these texts", hint="leave out --logprobs"
        )
    ids = mapped(given.file(IDS), np.dtype(np.int32), 4 * targets * top).reshape(targets, top)
    logprobs = mapped(given.file(LOGPROBS), np.dtype(np.float32), 4 * targets * (top + 1)).reshape(targets, top + 1)
    return TopRows(texts.kept, first, ids, logprobs), TopRows(texts.held, first, ids, logprobs)


def check_made_for(given: Artifact, config: DistillConfig, teacher: Artifact, role: str, text: Input) -> None:
    """Refuse what was kept of another teacher, of other texts, under another temperature, or as many as not asked for.

    Raises:
        InputError: naming what it is of.
    """
    facts: dict[str, Any] = given.manifest.semantic
    if given.manifest.schema_ != SCHEMA:
        raise InputError(
            f"{given.ref} is {given.manifest.schema_}, not {SCHEMA}",
            hint=f"llmctl logprobs {teacher.ref} --{role} {text.ref} makes it",
        )
    for made_of, wanted in (("input", teacher), (role, text)):
        source = given.manifest.inputs.get(made_of)
        if source is None or source.digest != wanted.as_input().digest:
            found = "none" if source is None else source.ref
            raise InputError(
                f"{given.ref} is of other {made_of} than {wanted.ref}: of {found}", hint="leave out --logprobs"
            )
    wanted_facts = {"temperature": config.loss.temperature, "top_k": config.top_k or facts["top_k"]}
    for name, value in wanted_facts.items():
        if facts[name] != value:
            raise InputError(
                f"{given.ref} was made with {name}={facts[name]:g}, not {value:g}",
                hint="leave out --logprobs, or take the same",
            )
