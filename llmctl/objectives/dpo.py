"""The stage `dpo`: a policy fitted to preferences, by DPO or one of its relatives."""

from __future__ import annotations

import dataclasses

import numpy as np

from llmctl.config.dpo import DpoConfig, LogprobsConfig
from llmctl.config.errors import UsageError
from llmctl.config.preference import KtoConfig, PairLossConfig
from llmctl.config.train import steps_of_epochs
from llmctl.objectives import adapter, checkpoint
from llmctl.objectives.logprobs import check_made_for, read_references
from llmctl.objectives.pair_rows import PackedPairs
from llmctl.objectives.pairs import Pairs, inspected_pairs, read_pairs
from llmctl.objectives.preferred import HeldOutPairs, KtoObjective, PairObjective
from llmctl.objectives.start import check_same_tokens, fill_id, longest, open_model, open_tokenizer
from llmctl.pipeline.job import Job, Product
from llmctl.train import launch
from llmctl.train.loop import fit


def run(job: Job[DpoConfig]) -> Product:
    """Score the answers under the reference, where the loss has one; train here, or with ranks.

    Raises:
        InputError: a row cannot be learned from, the reference has another tokenizer, or its figures are of others.
        UsageError: a reference is given that the loss does not look at, or in two ways.
    """
    _refuse_unread(job)
    if "logprobs" in job.inputs:
        check_made_for(job.artifact("logprobs"), job.artifact(), job.inputs["preferences"])
    elif job.config.needs_reference:
        policy = job.artifact()
        reference = job.artifact("reference") if "reference" in job.inputs else policy
        check_same_tokens(policy, reference)
        config = LogprobsConfig(
            max_tokens=longest(policy, job.config.max_tokens),
            overlong=job.config.overlong,
            unpaired=job.config.unpaired,
            precision=job.config.precision,
            device=job.config.device,
            threads=job.config.threads,
        )
        scored = job.nested("logprobs", config, {"input": reference, "preferences": job.inputs["preferences"]})
        job = dataclasses.replace(job, inputs={**job.inputs, "logprobs": scored})
    return launch.start(job, "llmctl.objectives.dpo:train")


def _refuse_unread(job: Job[DpoConfig]) -> None:
    """Refuse what is given and would not be looked at.

    Raises:
        UsageError: naming it.
    """
    given = [f"--{name}" for name in ("reference", "logprobs") if name in job.inputs]
    if given and not job.config.needs_reference:
        raise UsageError(f"the loss {job.config.loss.name} has no reference", hint=f"leave out {' and '.join(given)}")
    if len(given) > 1:
        raise UsageError("--reference and --logprobs are both given", hint="--logprobs holds the reference's figures")


def train(job: Job[DpoConfig]) -> Product:
    """What every rank runs.

    Raises:
        InputError: a row cannot be learned from, or nothing is left to learn from.
        UsageError: rows longer than the model's context were asked for.
    """
    given, config = job.artifact(), job.config
    tokenizer = open_tokenizer(given)
    length = longest(given, config.max_tokens)
    found = read_pairs(job.inputs["preferences"], tokenizer, length, config.heldout_fraction, unpaired=config.unpaired)
    found.refuse(config.overlong, length)
    found.refuse_empty_training()
    names = ("completion", "mismatched") if config.unpaired else ("chosen", "rejected")
    shown = inspected_pairs(found.pairs[: config.inspect], names, tokenizer)
    for note in (*found.told(length), *shown):
        job.progress.note(note)
    references = read_references(job.artifact("logprobs"), found.pairs) if config.needs_reference else None
    rows, held = (
        _packed(found, which, config.row_tokens, fill_id(given, tokenizer), references)
        for which in (~found.held, found.held)
    )
    objective = objective_of(rows, config.loss)
    model = open_model(given, tokenizer)
    start = adapter.begin(model, job.config.lora, job.config.seed)
    steps = config.steps or steps_of_epochs(config.epochs, rows.count, config.batches)
    held_out = HeldOutPairs(held, objective) if held.count else None
    fitted = fit(job, model, objective, steps=steps, heldout_rows=held_out)
    return checkpoint.publish_tuned(
        job,
        fitted,
        model,
        start,
        semantic=checkpoint.tuned_facts(given, length, found.heldout_fraction),
        totals=checkpoint.tuned_totals(
            "pairs",
            kept=len(rows.pairs),
            held=len(held.pairs),
            overlong=len(found.overlong),
            rows=rows.count,
            taken=config.batches.first_of(steps),
        ),
    )


def objective_of(rows: PackedPairs, loss: PairLossConfig | KtoConfig) -> PairObjective | KtoObjective:
    """What learns `loss` from rows of pairs."""
    return KtoObjective(rows, loss) if isinstance(loss, KtoConfig) else PairObjective(rows, loss)


def _packed(
    found: Pairs, which: np.ndarray, row_tokens: int | None, pad_id: int, references: np.ndarray | None
) -> PackedPairs:
    """One side's pairs in rows, with their reference's figures."""
    pairs = [found.pairs[at] for at in np.flatnonzero(which)]
    return PackedPairs(pairs, row_tokens, pad_id, None if references is None else references[which])
