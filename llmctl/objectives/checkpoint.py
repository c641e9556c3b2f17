"""The end that all objectives share: trained weights become a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llmctl.config.model import ModelConfig
from llmctl.model import huggingface
from llmctl.model.families import OWN
from llmctl.model.lora import Factors
from llmctl.model.transformer import Transformer
from llmctl.objectives import adapter
from llmctl.pipeline.job import Job, Product
from llmctl.store.artifact import Artifact
from llmctl.train.objective import Fitted

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
    with torch.device("meta"):  # shapes only: the weights are there already
        model = Transformer(config, semantic["vocab_size"])
    model.load_state_dict(fitted.weights, assign=True)
    family = huggingface.save(model, job.out, tokenizer_directory)
    if family is OWN:
        job.progress.note("no Hugging Face layout expresses this model: the checkpoint opens in llmctl alone")
    elif config.mtp is not None:
        job.progress.note("the blocks of multi-token prediction have served training, and are left out")
    facts = {"architecture": family.architecture, "parameters": model.parameters_count(), **semantic}
    return Product(SCHEMA, semantic=facts, totals={**fitted.totals, **totals})


def publish_tuned(
    job: Job[Any],
    fitted: Fitted,
    model: Transformer,
    start: dict[str, Factors],
    *,
    semantic: dict[str, Any],
    totals: dict[str, int | float | str],
) -> Product:
    """Publish what fine-tuning the checkpoint in the role `input` gave: another checkpoint, or an adapter to it.

    Args:
        job: the run.
        fitted: what training gave.
        model: that was trained.
        start: its adapters before; empty where all weights were trained.
        semantic: as for `publish`.
        totals: as for `publish`.
    """
    if start:
        return adapter.publish(job, fitted, model, start, semantic=semantic, totals=totals)
    directory = job.artifact().data
    return publish(job, fitted, model.config, tokenizer_directory=directory, semantic=semantic, totals=totals)


def unseen(given: Artifact, chats_fraction: float | None = None) -> dict[str, float]:
    """The fact `heldout_fraction`: below it in `position` of its id, no document was learned from.

    Args:
        given: the rows or the checkpoint that training starts from.
        chats_fraction: the same of chats that are learned from too.

    Returns:
        The smallest of what is known; nothing where nothing is.
    """
    known = [given.manifest.semantic.get("heldout_fraction"), chats_fraction]
    fractions = [float(fraction) for fraction in known if fraction is not None]
    return {"heldout_fraction": min(fractions)} if fractions else {}
