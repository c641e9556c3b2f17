"""Inputs that follow from those given (`Stage.derive`): found before the action key is made, and so part of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmctl.config.base import Config
from llmctl.config.errors import InputError
from llmctl.config.evals import EvalConfig
from llmctl.store.artifact import Artifact, Input

AGAINST = "against"
LEARNED = ("documents", "chats", "preferences", "prompts")
Find = Callable[[str], Artifact]
"""The artifact of the same store with this digest; an `InputError` where there is none."""


def tokenizer_of_rows(inputs: Mapping[str, Input], find: Find, _config: Config) -> dict[str, Artifact]:
    """The tokenizer of the packed rows in `input`, as `tokenizer`.

    Raises:
        InputError: it is no longer in the store.
    """
    rows = inputs["input"]
    assert isinstance(rows, Artifact)
    return {"tokenizer": find(rows.manifest.semantic["tokenizer"])}


def tokenizer_of_tokens(inputs: Mapping[str, Input], find: Find, _config: Config) -> dict[str, Artifact]:
    """The tokenizer of the token shards among `inputs`, as `tokenizer`; nothing where it is not in the store."""
    for given in inputs.values():
        if isinstance(given, Artifact) and given.kind == "tokens":
            try:
                return {"tokenizer": find(given.manifest.semantic["tokenizer"])}
            except InputError:
                return {}
    return {}


def of_evaluation(inputs: Mapping[str, Input], find: Find, config: Config) -> dict[str, Artifact]:
    """The rows behind the checkpoint in `input`, and what it has learned from where contamination is looked for."""
    assert isinstance(config, EvalConfig)
    return rows_of_checkpoint(inputs, find) | (learned_by(inputs, find) if config.contamination else {})


def learned_by(inputs: Mapping[str, Input], find: Find) -> dict[str, Artifact]:
    """All documents, chats and preferences that the checkpoint in `input` was made from, as `learned.<number>`.

    Of documents those that were tokenized or made into lessons, not what they were before; what is no longer in the
    store ends the way back. Evaluation sets that something was held against were not learned from.
    """
    found: dict[str, Artifact] = {}
    seen: set[str] = set()

    def visit(artifact: Artifact) -> None:
        for role, entry in sorted(artifact.manifest.inputs.items()):
            if entry.digest in seen or role.partition(".")[0] == AGAINST:
                continue
            seen.add(entry.digest)
            try:
                parent = find(entry.digest)
            except InputError:
                continue
            if entry.kind in LEARNED:
                found.setdefault(f"learned.{len(found)}", parent)
            if entry.kind != "documents":
                visit(parent)

    start = inputs.get("input")
    if isinstance(start, Artifact):
        visit(start)
    return found


def rows_of_checkpoint(inputs: Mapping[str, Input], find: Find) -> dict[str, Artifact]:
    """The packed rows that the checkpoint in `input`, or the first one before it, was trained on, as `rows`.

    Nothing where rows are given, or where the checkpoint came from elsewhere. Of a student whose teacher reads other
    tokens, those that the student began with.

    Raises:
        InputError: there were such rows, but they are no longer in the store.
    """
    artifact = inputs.get("input")  # none where a server is measured
    while "rows" not in inputs and isinstance(artifact, Artifact):
        entry = artifact.manifest.inputs.get("input")
        if entry is None or entry.kind not in ("checkpoint", "rows"):
            break
        before = find(entry.digest)
        if before.kind == "rows":
            return {"rows": before}
        student = artifact.manifest.inputs.get("student")
        reads_others = before.manifest.semantic.get("tokenizer") != artifact.manifest.semantic.get("tokenizer")
        artifact = find(student.digest) if student is not None and reads_others else before
    return {}


def rows_to_learn_from(inputs: Mapping[str, Input], find: Find, _config: Config) -> dict[str, Artifact]:
    """`rows_of_checkpoint`, where there are no chats to learn from."""
    return {} if "chats" in inputs else rows_of_checkpoint(inputs, find)
