"""An artifact as a reader sees it: a manifest and the files that it lists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmctl.config.errors import InputError
from llmctl.store.files import sha256_file
from llmctl.store.manifest import InputEntry, Manifest


@dataclass(frozen=True)
class Artifact:
    """One committed run directory. Its files never change.

    Attributes:
        path: the run directory, `<store>/<name>/<run-id>`.
        manifest: its parsed `manifest.json`.
        ref: what it was asked for as, for messages (`web.clean@v3`).
    """

    path: Path
    manifest: Manifest
    ref: str

    @property
    def name(self) -> str:
        """The artifact's name without its version."""
        return self.path.parent.name if "/" in self.ref else self.ref.partition("@")[0]

    @property
    def kind(self) -> str:
        """Such as `documents`, `tokens` or `checkpoint`."""
        return self.manifest.kind

    @property
    def digest(self) -> str:
        """`sha256:…` of the content."""
        return self.manifest.digest

    @property
    def data(self) -> Path:
        """The directory of the published files."""
        return self.path / "data"

    @property
    def bytes(self) -> int:
        """Size of all published files."""
        return sum(entry.bytes for entry in self.manifest.files)

    def files(self, *, suffix: str = "", split: str | None = None) -> list[Path]:
        """Published files in manifest order, by ending and by split where given."""
        return [
            self.path / entry.path
            for entry in self.manifest.files
            if entry.path.endswith(suffix) and (split is None or entry.split == split)
        ]

    def holds(self, name: str) -> bool:
        """Whether the manifest lists `data/<name>`."""
        return any(entry.path == f"data/{name}" for entry in self.manifest.files)

    def file(self, name: str) -> Path:
        """The one published file `data/<name>`; `InputError` where the manifest does not list it."""
        if not self.holds(name):
            raise InputError(f"{self.ref} holds no file {name}", hint=f"see llmctl show {self.ref}")
        return self.data / name

    def as_input(self) -> InputEntry:
        """How a manifest made from this artifact names it."""
        return InputEntry(digest=self.digest, kind=self.kind, ref=self.ref)


@dataclass(frozen=True)
class FileInput:
    """A plain file given where an artifact is expected; identified by its bytes.

    Attributes:
        path: the file, as given.
        digest: `sha256:…` of its bytes.
        kind: the artifact kind whose rows it holds.
    """

    path: Path
    digest: str
    kind: str

    @classmethod
    def of(cls, path: Path, kind: str) -> FileInput:
        """Hash `path`; an `OSError` where it cannot be read."""
        return cls(path, "sha256:" + sha256_file(path), kind)

    @property
    def name(self) -> str:
        """The file's name without its endings, as the root of what is made from it."""
        return self.path.name.partition(".")[0]

    @property
    def ref(self) -> str:
        """The path, for messages."""
        return str(self.path)

    def as_input(self) -> InputEntry:
        """How a manifest names a plain file."""
        return InputEntry(digest=self.digest, kind=self.kind, ref=self.path.name)


Input = Artifact | FileInput
