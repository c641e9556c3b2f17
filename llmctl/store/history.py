"""The artifacts of documents that led to one, oldest first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llmctl.config.errors import LlmctlError
from llmctl.store.artifact import Artifact
from llmctl.store.manifest import Manifest


@dataclass(frozen=True)
class Ancestor:
    """One step of the way: what it is called, and its manifest."""

    ref: str
    manifest: Manifest


def documents_before(manifest: Manifest, find: Callable[[str], Artifact]) -> list[Ancestor]:
    """Every documents artifact that `manifest` was made from, directly or not; each comes after its own inputs.

    Args:
        manifest: where to start; not part of the answer.
        find: finds an artifact by digest; where it cannot, the way back ends.
    """
    found: dict[str, Ancestor] = {}

    def visit(one: Manifest) -> None:
        for _, entry in sorted(one.inputs.items()):
            if entry.kind != "documents" or entry.digest in found:
                continue
            try:
                parent = find(entry.digest)
            except LlmctlError:
                continue
            visit(parent.manifest)
            found[entry.digest] = Ancestor(entry.ref, parent.manifest)

    visit(manifest)
    return list(found.values())
