"""What an artifact was made from, back to the raw sources."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmctl.config.errors import InputError
from llmctl.store.artifact import Artifact
from llmctl.store.manifest import InputEntry
from llmctl.store.store import Store


@dataclass(frozen=True)
class Node:
    """One artifact in the tree.

    Attributes:
        role: what it was to its child (`input`, `tokenizer`); empty at the root.
        ref: its name, or what the manifest called it where the store does not hold it.
        kind: its artifact kind.
        digest: its content digest.
        command: what made it; empty for plain files and for artifacts that are not here.
        parents: what it was made from.
    """

    role: str
    ref: str
    kind: str
    digest: str
    command: str = ""
    parents: tuple[Node, ...] = field(default=())


def trace(store: Store, artifact: Artifact, role: str = "") -> Node:
    """Follow inputs by digest through the store; stops where it does not hold one."""
    parents = tuple(_parent(store, name, entry) for name, entry in artifact.manifest.inputs.items())
    return Node(role, artifact.ref, artifact.kind, artifact.digest, artifact.manifest.producer.command, parents)


def _parent(store: Store, role: str, entry: InputEntry) -> Node:
    try:
        return trace(store, store.find(entry.digest), role)
    except InputError:
        return Node(role, entry.ref, entry.kind, entry.digest)
