"""Inputs that follow from those given (`Stage.derive`): found before the action key is made, and so part of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmctl.config.errors import InputError
from llmctl.store.artifact import Artifact, Input

Find = Callable[[str], Artifact]
"""The artifact of the same store with this digest; an `InputError` where there is none."""


def tokenizer_of_rows(inputs: Mapping[str, Input], find: Find) -> dict[str, Artifact]:
    """The tokenizer of the packed rows in `input`, as `tokenizer`.

    Raises:
        InputError: it is no longer in the store.
    """
    rows = inputs["input"]
    assert isinstance(rows, Artifact)
    return {"tokenizer": find(rows.manifest.semantic["tokenizer"])}


def tokenizer_of_tokens(inputs: Mapping[str, Input], find: Find) -> dict[str, Artifact]:
    """The tokenizer of the token shards among `inputs`, as `tokenizer`; nothing where it is not in the store."""
    for given in inputs.values():
        if isinstance(given, Artifact) and given.kind == "tokens":
            try:
                return {"tokenizer": find(given.manifest.semantic["tokenizer"])}
            except InputError:
                return {}
    return {}


def rows_of_checkpoint(inputs: Mapping[str, Input], find: Find) -> dict[str, Artifact]:
    """The packed rows that the checkpoint in `input`, or the first one before it, was trained on, as `rows`.

    Nothing where rows are given, or where the checkpoint came from elsewhere.

    Raises:
        InputError: there were such rows, but they are no longer in the store.
    """
    artifact = inputs["input"]
    while "rows" not in inputs and isinstance(artifact, Artifact):
        entry = artifact.manifest.inputs.get("input")
        if entry is None or entry.kind not in ("checkpoint", "rows"):
            break
        artifact = find(entry.digest)
        if artifact.kind == "rows":
            return {"rows": artifact}
    return {}


def rows_to_learn_from(inputs: Mapping[str, Input], find: Find) -> dict[str, Artifact]:
    """`rows_of_checkpoint`, where there are no chats to learn from."""
    return {} if "chats" in inputs else rows_of_checkpoint(inputs, find)
