"""Does the store still hold what its manifests promise?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmctl.config.errors import InputError, IntegrityError
from llmctl.store.artifact import Artifact
from llmctl.store.files import sha256_file
from llmctl.store.manifest import content_digest
from llmctl.store.store import Store


@dataclass(frozen=True)
class Fault:
    """One broken promise: which artifact, and what is wrong with it."""

    ref: str
    what: str


def verify_artifact(artifact: Artifact, *, full: bool) -> list[Fault]:
    """Check sizes and the digest's arithmetic; with `full`, every byte against its SHA-256."""
    manifest = artifact.manifest
    faults: list[Fault] = []
    if content_digest(manifest.kind, manifest.schema_, manifest.semantic, manifest.files) != manifest.digest:
        faults.append(Fault(artifact.ref, "the manifest's digest does not follow from its content"))
    for entry in manifest.files:
        path = artifact.path / entry.path
        if not path.is_file():
            faults.append(Fault(artifact.ref, f"{entry.path} is missing"))
        elif path.stat().st_size != entry.bytes:
            faults.append(Fault(artifact.ref, f"{entry.path} has {path.stat().st_size} bytes, not {entry.bytes}"))
        elif full and sha256_file(path) != entry.sha256:
            faults.append(Fault(artifact.ref, f"{entry.path} does not match its sha256"))
    return faults


def verify_store(store: Store, *, full: bool) -> tuple[int, list[Fault]]:
    """Check every version of every name; returns how many were checked and what is broken."""
    checked = 0
    faults: list[Fault] = []
    seen: set[Path] = set()
    for ref in [ref for name in store.names() for ref in store.versions(name)]:
        checked += 1
        try:
            artifact = store.resolve(ref)
        except (InputError, IntegrityError) as error:
            faults.append(Fault(ref, error.what))
            continue
        if artifact.path not in seen:
            faults += verify_artifact(artifact, full=full)
            seen.add(artifact.path)
    return checked, faults
