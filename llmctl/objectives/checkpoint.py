"""The end that objectives share: fine-tuning runs the loop, and trained weights become a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from llmctl.config.model import ModelConfig
from llmctl.config.train import steps_of_epochs
from llmctl.model import huggingface
from llmctl.model.families import OWN
from llmctl.model.lora import Factors
from llmctl.model.transformer import Transformer, outline
from llmctl.objectives import adapter
from llmctl.pipeline.job import Job, Product
from llmctl.store.artifact import Artifact
from llmctl.train.heldout import HeldOutSource
from llmctl.train.loop import fit
from llmctl.train.objective import Fitted, Objective

SCHEMA = "llmctl.checkpoint/1"


def publish(
    job: Job[Any],
    fitted: Fitted,
    config: ModelConfig,
    *,
    tokenizer_directory: Path,
    semantic: dict[str, Any],
    totals: dict[str, int | float | str],
) -> Product:
    """Write the Hugging Face directory into `job.out` on rank 0; the other ranks have nothing to write.

    Args:
        job: the run.
        fitted: what training gave.
        config: of the model.
        tokenizer_directory: whose files the checkpoint carries.
        semantic: `vocab_size`, `tokenizer` (digest) and `seq_len` of what was trained on; `chat` where it learned
            the chat template; what `unseen` gives.
        totals: figures beyond those of training.
    """
    if fitted.weights is None:
        return Product(SCHEMA)
    facts = write(job, fitted.weights, config, semantic["vocab_size"], tokenizer_directory)
    return Product(SCHEMA, semantic={**facts, **semantic}, totals={**fitted.totals, **totals})


def write(
    job: Job[Any], weights: dict[str, Tensor], config: ModelConfig, vocab_size: int, tokenizer_directory: Path
) -> dict[str, Any]:
    """Write the Hugging Face directory into `job.out`, and say what its layout does not hold.

    Returns:
        The facts `architecture` and `parameters`.
    """
    model = outline(config, vocab_size)
    model.load_state_dict(weights, assign=True)
    family = huggingface.save(model, job.out, tokenizer_directory)
    if family is OWN:
        job.progress.note("no Hugging Face layout expresses this model: the checkpoint opens in llmctl alone")
    elif config.mtp is not None:
        job.progress.note("the blocks of multi-token prediction have served training, and are left out")
    return {"architecture": family.architecture, "parameters": model.parameters_count()}


def publish_tuned(
    job: Job[Any],
    fitted: Fitted,
    model: Transformer,
    start: dict[str, Factors],
    *,
    semantic: dict[str, Any],
    totals: dict[str, int | float | str],
    source: Artifact | None = None,
) -> Product:
    """Publish what fine-tuning a checkpoint gave: another checkpoint, or an adapter to it.

    Args:
        job: the run.
        fitted: what training gave.
        model: that was trained.
        start: its adapters before; empty where all weights were trained.
        semantic: as for `publish`.
        totals: as for `publish`.
        source: the checkpoint, or whose tokenizer a fresh one carries; the job's `input` where left out.
    """
    given = job.artifact() if source is None else source
    if start:
        return adapter.publish(job, fitted, model, start, base=given, semantic=semantic, totals=totals)
    directory = given.data
    return publish(job, fitted, model.config, tokenizer_directory=directory, semantic=semantic, totals=totals)


def tuned_facts(given: Artifact, seq_len: int, heldout_fraction: float | None) -> dict[str, Any]:
    """The semantic facts of what fine-tuning on chats or preferences gave.

    Args:
        given: the checkpoint that it started from, whose tokenizer it keeps.
        seq_len: longest text that was learned from.
        heldout_fraction: of the chats or preferences; None where they do not tell.
    """
    kept = {name: given.manifest.semantic[name] for name in ("vocab_size", "tokenizer")}
    return {**kept, "seq_len": seq_len, "chat": True, **unseen(given, fraction=heldout_fraction)}


def fit_tuned(
    job: Job[Any],
    model: Transformer,
    objective: Objective,
    heldout_rows: HeldOutSource | None,
    *,
    unit: str,
    kept: int,
    held: int,
    overlong: int,
    measured_before: bool = False,
) -> tuple[Fitted, dict[str, int | float | str]]:
    """Train for the steps or epochs that were asked for; what that gave, and the totals of what it looked at.

    Args:
        job: the run.
        model: to train.
        objective: what is learned.
        heldout_rows: what is measured; None for nothing.
        unit: `chats` or `pairs`.
        kept: how many were learned from.
        held: how many were held out.
        overlong: how many did not fit.
        measured_before: whether the held-out rows are measured before the first step too.
    """
    config, rows = job.config, objective.rows.count
    steps = config.steps or steps_of_epochs(config.epochs, rows, config.batches)
    fitted = fit(job, model, objective, steps=steps, heldout_rows=heldout_rows, measured_before=measured_before)
    counts = {unit: kept, f"heldout_{unit}": held, "dropped.overlong": overlong, "rows": rows}
    return fitted, {**counts, "epochs": config.batches.first_of(steps) / rows}


def unseen(*given: Artifact, fraction: float | None = None) -> dict[str, float]:
    """The fact `heldout_fraction`: below it in `position` of its id, no document was learned from.

    Args:
        given: the rows or the checkpoints that the new checkpoint comes from.
        fraction: the same of chats or preferences that are learned from too.

    Returns:
        The smallest of what is known; nothing where nothing is.
    """
    known = [*(source.manifest.semantic.get("heldout_fraction") for source in given), fraction]
    fractions = [float(one) for one in known if one is not None]
    return {"heldout_fraction": min(fractions)} if fractions else {}
