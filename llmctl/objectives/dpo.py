"""The stage `dpo`: a policy fitted to preferences, by DPO or one of its relatives."""

from __future__ import annotations

import dataclasses

from llmctl.config.dpo import DpoConfig, LogprobsConfig
from llmctl.config.errors import UsageError
from llmctl.config.preference import KtoConfig, PairLossConfig
from llmctl.objectives import adapter, checkpoint
from llmctl.objectives.logprobs import check_made_for, read_references
from llmctl.objectives.pair_rows import PackedPairs, packed_sides
from llmctl.objectives.pairs import pairs_to_learn
from llmctl.objectives.preferred import KtoObjective, PairObjective, fit_pairs
from llmctl.objectives.start import check_same_tokens, fill_id, longest, open_model, open_tokenizer
from llmctl.pipeline.job import Job, Product
from llmctl.train import launch


def run(job: Job[DpoConfig]) -> Product:
    """Score the answers under the reference, where the loss has one; train here, or with ranks.

    Raises:
        InputError: a row cannot be learned from, the reference has another tokenizer, or its figures are of others.
        UsageError: a reference is given that the loss does not look at, or in two ways.
    """
    _refuse_unread(job)
    if "logprobs" in job.inputs:
        check_made_for(job.artifact("logprobs"), job.artifact(), job.inputs["preferences"], job.config.base)
    elif job.config.needs_reference:
        policy = job.artifact()
        reference = job.artifact("reference") if "reference" in job.inputs else policy
        check_same_tokens(policy, reference)
        config = LogprobsConfig(
            max_tokens=longest(policy, job.config.max_tokens),
            overlong=job.config.overlong,
            unpaired=job.config.unpaired,
            base=job.config.base,
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
    found = pairs_to_learn(job, tokenizer, length, unpaired=config.unpaired)
    references = read_references(job.artifact("logprobs"), found.pairs) if config.needs_reference else None
    rows, held = packed_sides(found, config.row_tokens, fill_id(given, tokenizer), references)
    objective = objective_of(rows, config.loss)
    model = open_model(given, tokenizer, config.base)
    start = adapter.begin(model, config.lora, config.seed)
    fitted, totals = fit_pairs(job, model, objective, held, found)
    facts = checkpoint.tuned_facts(given, length, found.heldout_fraction)
    return checkpoint.publish_tuned(job, fitted, model, start, semantic=facts, totals=totals)


def objective_of(rows: PackedPairs, loss: PairLossConfig | KtoConfig) -> PairObjective | KtoObjective:
    """What learns `loss` from rows of pairs."""
    return KtoObjective(rows, loss) if isinstance(loss, KtoConfig) else PairObjective(rows, loss)
