"""The stage `logprobs`: what a reference gives answers, or a teacher texts, computed once and kept."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from llmctl.config.dpo import LogprobsConfig
from llmctl.config.errors import InputError, IntegrityError, UsageError
from llmctl.model.device import choose_device, product_dtype
from llmctl.model.kernels import set_backend
from llmctl.model.likelihood import Tensors
from llmctl.objectives import top_logprobs
from llmctl.objectives.pair_rows import PackedPairs, answer_logps
from llmctl.objectives.pairs import Pair, read_pairs
from llmctl.objectives.start import fill_id, longest, open_model, open_tokenizer
from llmctl.pipeline.job import FileFacts, Job, Product
from llmctl.store.artifact import Artifact, Input
from llmctl.train.strategy import set_threads

SCHEMA = "llmctl.logprobs/1"
FILE = "part-00000.parquet"


class Column(NamedTuple):
    """The names of one side's columns: summed log-probabilities, and over how many tokens."""

    logps: str
    tokens: str


PAIRED = (Column("chosen", "chosen_tokens"), Column("rejected", "rejected_tokens"))
UNPAIRED = (Column("completion", "completion_tokens"), Column("mismatched", "mismatched_tokens"))


def run(job: Job[LogprobsConfig]) -> Product:
    """Score preferences for dpo, or chats or rows for distill.

    Raises:
        InputError: a row that cannot be scored, printed; or one that is malformed.
        UsageError: none or several of them are given.
    """
    given = [role for role in ("preferences", "chats", "rows") if role in job.inputs]
    if len(given) != 1:
        raise UsageError(
            f"logprobs scores one of preferences, chats and rows, and got {' and '.join(given) or 'none'}",
            hint="give --preferences for dpo, --chats or --rows for distill",
        )
    return score_answers(job) if given == ["preferences"] else top_logprobs.score(job)


def score_answers(job: Job[LogprobsConfig]) -> Product:
    """Score every answer that fits, in the order of the preferences, held-out ones included.

    Raises:
        InputError: a row that cannot be scored, printed; or one that is malformed.
    """
    given, config = job.artifact(), job.config
    tokenizer = open_tokenizer(given)
    length = longest(given, config.max_tokens)
    found = read_pairs(job.inputs["preferences"], tokenizer, length, 0.0, unpaired=config.unpaired)
    found.refuse(config.overlong, length)
    rows = PackedPairs(found.pairs, None, fill_id(given, tokenizer))
    set_threads(config.threads, 1)
    device = choose_device(config.device)
    model = open_model(given, tokenizer, config.base).to(device).eval()
    set_backend(model, config.precision, device)
    names = UNPAIRED if config.unpaired else PAIRED
    table = scored(job, model, rows, names)
    pq.write_table(table, job.out / FILE)
    tokens = sum(pair.tokens for pair in found.pairs)
    return Product(
        SCHEMA,
        semantic={
            "tokenizer": given.manifest.semantic["tokenizer"],
            "max_tokens": length,
            "columns": [name for column in names for name in column],
            **({} if config.base == "full" else {"base": config.base}),
        },
        totals={"rows": table.num_rows, "tokens": tokens, "dropped.overlong": len(found.overlong)},
        files={FILE: FileFacts(rows=table.num_rows)},
    )


@torch.inference_mode()
def scored(
    job: Job[LogprobsConfig], model: torch.nn.Module, rows: PackedPairs, names: tuple[Column, Column]
) -> pa.Table:
    """A row for each pair, in their order."""
    logps = np.zeros((len(rows.pairs), 2))
    counts = np.zeros((len(rows.pairs), 2), dtype=np.int64)
    device = next(model.parameters()).device
    dtype = product_dtype(job.config.precision)
    at_once = max(1, job.config.batch_tokens // rows.seq_len)
    for first in range(0, rows.count, at_once):
        indices = np.arange(first, min(first + at_once, rows.count))
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            sides = answer_logps(model, Tensors.of(rows.batch(indices), device))  # type: ignore[arg-type]
        which = np.concatenate([rows.pairs_of(int(index)) for index in indices])
        for side, (sums, tokens) in enumerate(sides):
            logps[which, side], counts[which, side] = sums.cpu().numpy(), tokens.cpu().numpy()
        job.progress.update(int(indices[-1]) + 1, rows.count, "rows")
    columns = {
        name: values[:, side]
        for side, column in enumerate(names)
        for name, values in zip(column, (logps, counts), strict=True)
    }
    return pa.table(columns)


def check_made_for(given: Artifact, policy: Artifact, preferences: Input, base: str = "full") -> None:
    """Refuse log-probabilities of other preferences, or of a reference that reads other ids or is kept otherwise.

    Raises:
        InputError: naming what they are of. The tokenizer counts as another where its digest differs.
    """
    scored = given.manifest.inputs.get("preferences")
    if scored is not None and scored.digest != preferences.as_input().digest:
        raise InputError(
            f"{given.ref} is of other preferences than {preferences.ref}: of {scored.ref}",
            hint="leave out --logprobs, or give what llmctl logprobs made of these",
        )
    if (kept := given.manifest.semantic.get("base", "full")) != base:
        raise InputError(
            f"{given.ref} was scored with base={kept}, and lora.base is {base}",
            hint=f"leave out --logprobs, or give what llmctl logprobs base={base} made",
        )
    if given.manifest.semantic.get("tokenizer") != policy.manifest.semantic.get("tokenizer"):
        raise InputError(
            f"{given.ref} was scored with another tokenizer than that of {policy.ref}",
            hint="give the reference itself, --reference REF: then its tokens are compared one by one",
        )


def read_references(given: Artifact, pairs: list[Pair]) -> NDArray[np.float64]:
    """[pairs, 2], after checking that they are as many, over as many tokens; whose, `check_made_for` looks at.

    Raises:
        IntegrityError: there are more or fewer of them, or they are over other numbers of tokens.
    """
    table = pq.read_table(given.file(FILE))
    names = UNPAIRED if UNPAIRED[0].logps in table.column_names else PAIRED
    logps = np.stack([table.column(column.logps).to_numpy() for column in names], axis=1)
    counts = np.stack([table.column(column.tokens).to_numpy() for column in names], axis=1)
    wanted = np.array([[answer.targets for answer in pair.answers] for pair in pairs], dtype=np.int64)
    if counts.shape != wanted.shape or not np.array_equal(counts, wanted):
        raise IntegrityError(
            f"{given.ref} does not hold the log-probabilities of these preferences", hint="leave out --logprobs"
        )
    return np.asarray(logps, dtype=np.float64)
