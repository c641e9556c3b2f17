"""What a checkpoint was made from: the rows to measure it on, and whether chats were among it."""

from __future__ import annotations

from collections.abc import Iterator

from llmctl.config.errors import InputError
from llmctl.config.evals import EvalConfig
from llmctl.pipeline.job import Job
from llmctl.store.artifact import Artifact


def ancestors(job: Job[EvalConfig], checkpoint: Artifact) -> Iterator[Artifact]:
    """`checkpoint` and what it was made from, `input` by `input`, as far as they are checkpoints of this store."""
    artifact = checkpoint
    while True:
        yield artifact
        entry = artifact.manifest.inputs.get("input")
        if entry is None or entry.kind != "checkpoint":
            return
        artifact = job.ancestor(artifact, "input")


def training_rows(job: Job[EvalConfig], checkpoint: Artifact) -> Artifact | None:
    """The packed rows that the first of these checkpoints was trained on; None where it came from elsewhere.

    Raises:
        InputError: there were such rows, but they are no longer in the store.
    """
    *_, first = ancestors(job, checkpoint)
    entry = first.manifest.inputs.get("input")
    return job.ancestor(first, "input") if entry is not None and entry.kind == "rows" else None


def heldout_source(job: Job[EvalConfig], checkpoint: Artifact) -> Artifact | None:
    """The rows given, or else those of the checkpoint's lineage.

    Raises:
        InputError: their tokens are not those of the checkpoint's tokenizer.
    """
    rows = job.artifact("rows") if "rows" in job.inputs else training_rows(job, checkpoint)
    if rows is None:
        return None
    for fact in ("tokenizer", "vocab_size"):
        theirs, ours = rows.manifest.semantic.get(fact), checkpoint.manifest.semantic.get(fact)
        if theirs != ours:
            raise InputError(
                f"{rows.ref} and {checkpoint.ref} differ in {fact}: {theirs} and {ours}",
                hint="give --rows that were packed with the checkpoint's tokenizer",
            )
    return rows


def was_trained_on_chats(job: Job[EvalConfig], checkpoint: Artifact) -> bool:
    """Whether any step that led to `checkpoint` trained on chats."""
    return any("chats" in artifact.manifest.inputs for artifact in ancestors(job, checkpoint))
