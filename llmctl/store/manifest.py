"""The manifest: what an artifact is, byte for byte, and where it came from (design §3)."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, field_validator

MANIFEST_FORMAT: Literal["llmctl.manifest/1"] = "llmctl.manifest/1"
MANIFEST_FILE = "manifest.json"


class _Record(BaseModel):
    # JSON has no NaN: it would be written as null, which no reader takes back.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileEntry(_Record):
    """One published file. `path` is relative to the run directory, under `data/`, and uses forward slashes."""

    path: str
    bytes: int
    sha256: str
    rows: int | None = None
    tokens: int | None = None
    split: str | None = None

    @field_validator("path")
    @classmethod
    def _under_data(cls, path: str) -> str:
        parts = path.split("/")
        if parts[0] != "data" or len(parts) < 2 or {"", ".", ".."} & set(parts) or "\\" in path or "\0" in path:
            raise ValueError("must name a file under data/")
        return path


class Producer(_Record):
    """What made the artifact, in enough detail to make it again."""

    command: str
    op_version: int
    llmctl: str
    git: str | None = None
    engine: str = "native"
    argv: list[str]
    config: dict[str, Any]
    seed: int | None = None
    action_key: str


class InputEntry(_Record):
    """One input by content. `ref` is what the user or the recipe called it."""

    digest: str
    kind: str
    ref: str


class RunInfo(_Record):
    """When and where the run took place; never part of the digest."""

    id: str
    started: str
    finished: str
    host: str


class Manifest(_Record):
    """`manifest.json`, written last: its presence is the commit."""

    format: Literal["llmctl.manifest/1"] = MANIFEST_FORMAT
    kind: str
    schema_: str = Field(alias="schema")
    digest: str
    files: list[FileEntry]
    totals: dict[str, int | float | str]
    semantic: dict[str, Any]
    producer: Producer
    inputs: dict[str, InputEntry]
    run: RunInfo
    license: list[str]

    model_config = ConfigDict(populate_by_name=True)

    def to_bytes(self) -> bytes:
        """The canonical form on disk: indented, sorted keys, one final newline."""
        return (self.model_dump_json(by_alias=True, indent=2) + "\n").encode()


def canonical(value: Any) -> bytes:
    """RFC 8785 JSON: one byte sequence for one value, whoever writes it."""
    return rfc8785.dumps(value)


def sha256_of(value: Any) -> str:
    """`sha256:<hex>` of the canonical JSON of `value`."""
    return "sha256:" + hashlib.sha256(canonical(value)).hexdigest()


def content_digest(kind: str, schema: str, semantic: dict[str, Any], files: list[FileEntry]) -> str:
    """The digest of an artifact's content only: no times, hosts or versions go in."""
    entries = [{"path": f.path, "bytes": f.bytes, "sha256": f.sha256} for f in sorted(files, key=lambda f: f.path)]
    return sha256_of({"kind": kind, "schema": schema, "semantic": semantic, "files": entries})
