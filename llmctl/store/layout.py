"""Where everything lies in a store, and which names are allowed (design §3)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from llmctl.config.errors import UsageError

METRICS_FILE = "metrics.jsonl"
STORE_FILE = "store.json"
STORE_FORMAT = "llmctl.store/1"
RESERVED = frozenset({"downloads", "index", "runs"})
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_name(name: str) -> str:
    """Return `name` if it is a safe artifact name, else raise a `UsageError`."""
    if not NAME.fullmatch(name) or name in RESERVED or name.endswith(".tmp"):
        raise UsageError(
            f"{name!r} is not an artifact name",
            hint="use at most 128 letters, digits, '.', '_' and '-', starting with a letter or digit",
        )
    return name


@dataclass(frozen=True)
class RunDirectory:
    """One run's directory, `<store>/<name>/<run-id>`, from its start to its commit."""

    store: Path
    name: str
    run_id: str

    @property
    def key(self) -> str:
        """`<name>/<run-id>`, as refs and indexes hold it."""
        return f"{self.name}/{self.run_id}"

    @property
    def path(self) -> Path:
        """The directory itself."""
        return self.store / self.name / self.run_id

    @property
    def data(self) -> Path:
        """Published files."""
        return self.path / "data"

    @property
    def work(self) -> Path:
        """Resumable state; removed at the commit."""
        return self.path / "work"

    @property
    def metrics(self) -> Path:
        """One JSON row per logged measurement."""
        return self.path / METRICS_FILE

    @property
    def manifest(self) -> Path:
        """The commit mark."""
        return self.path / "manifest.json"

    @property
    def lock(self) -> Path:
        """Held by the process that works on this run; outside `work`, so that a commit cannot remove it early."""
        return self.path / ".lock"


def refs_directory(store: Path, name: str) -> Path:
    """Where the versions of `name` are recorded."""
    return store / name / "refs"


def index_file(store: Path, kind: str, key: str) -> Path:
    """`index/<kind>/<hex>.json` for a `sha256:<hex>` key; `kind` is digest, action or partial."""
    return store / "index" / kind / (key.removeprefix("sha256:") + ".json")


def downloads_directory(store: Path) -> Path:
    """Where what a stage fetched is kept; it may be deleted at any time."""
    return store / "downloads"
