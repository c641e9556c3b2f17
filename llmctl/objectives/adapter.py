"""Training an adapter in place of all weights: before the loop, and what is published after it."""

from __future__ import annotations

from typing import Any

from llmctl.config.lora import LoraConfig
from llmctl.model import adapters
from llmctl.model.lora import Factors, attach, difference, factors_of
from llmctl.model.transformer import Transformer
from llmctl.pipeline.job import Job, Product
from llmctl.store.artifact import Artifact
from llmctl.train.objective import Fitted


def begin(model: Transformer, config: LoraConfig | None, seed: int) -> dict[str, Factors]:
    """Put the adapters on, where there are to be any; what each is at the start.

    Raises:
        UsageError: a target is not there.
    """
    if config is None:
        return {}
    return attach(model, config, seed)


def publish(
    job: Job[Any],
    fitted: Fitted,
    model: Transformer,
    start: dict[str, Factors],
    *,
    base: Artifact,
    semantic: dict[str, Any],
    totals: dict[str, int | float | str],
) -> Product:
    """Write the adapter into `job.out`, in PEFT's format, on rank 0; the other ranks have nothing to write.

    Args:
        job: the run.
        fitted: what training gave.
        model: with its adapters on.
        start: what they were.
        base: what they adapt.
        semantic: as for `llmctl.objectives.checkpoint.publish`.
        totals: figures beyond those of training.
    """
    if fitted.weights is None:
        return Product(adapters.SCHEMA)
    found = factors_of(model, fitted.weights)
    if job.config.lora.init == "pissa":
        found = difference(found, start)
    adapters.write(job.out, found, model.config, model.vocab_size, base.ref)
    parameters = sum(one.a.numel() + one.b.numel() for one in found.values())
    facts = {"base": base.digest, "parameters": parameters, **semantic}
    if job.config.base != "full":
        facts["base_kept"] = job.config.base
    return Product(adapters.SCHEMA, semantic=facts, totals={**fitted.totals, **totals})
