"""Names and versions: `name`, `name@v3`, `name@sha256:3f9c…`. Versions never move; `latest` does."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llmctl.config.errors import IntegrityError, LockedError, UsageError
from llmctl.store.files import publish_bytes
from llmctl.store.layout import check_name, refs_directory

LOCK_TIMEOUT_S = 30
VERSION = re.compile(r"v([1-9][0-9]*)")
DIGEST = re.compile(r"sha256:([0-9a-f]{12,64})")


@dataclass(frozen=True)
class Pointer:
    """What a ref or an index entry holds: which run, with which content, under which manifest."""

    run: str
    digest: str
    manifest_sha256: str

    def to_bytes(self) -> bytes:
        """One line of JSON."""
        return (json.dumps(asdict(self), sort_keys=True) + "\n").encode()


def read_pointer(path: Path) -> Pointer | None:
    """Read a pointer file; None where it does not exist, `IntegrityError` where it is damaged."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return Pointer(**json.loads(text))
    except (ValueError, TypeError):
        raise IntegrityError(f"{path} is damaged", hint="remove it and run the command again") from None


@dataclass(frozen=True)
class ParsedRef:
    """A reference taken apart: a name, and a version number or a digest prefix or neither (latest)."""

    name: str
    version: int | None = None
    digest_prefix: str | None = None


def parse_ref(text: str) -> ParsedRef:
    """Parse `name[@vN|@sha256:hex]`; a `UsageError` shows the accepted forms."""
    name, separator, selector = text.partition("@")
    check_name(name)
    if not separator or selector == "latest":
        return ParsedRef(name)
    if match := VERSION.fullmatch(selector):
        return ParsedRef(name, version=int(match.group(1)))
    if match := DIGEST.fullmatch(selector):
        return ParsedRef(name, digest_prefix=match.group(1))
    raise UsageError(
        f"{text!r} is not a reference", hint="write name, name@v3 or name@sha256:… with at least 12 digits"
    )


def versions(store: Path, name: str) -> dict[int, Pointer]:
    """All versions of `name` by number, ascending; empty where the name is unknown."""
    found: dict[int, Pointer] = {}
    directory = refs_directory(store, name)
    numbers = (
        [int(m.group(1)) for p in directory.glob("v*.json") if (m := VERSION.fullmatch(p.stem))]
        if directory.is_dir()
        else []
    )
    for number in sorted(numbers):
        pointer = read_pointer(directory / f"v{number}.json")
        if pointer is not None:
            found[number] = pointer
    return found


def add_version(store: Path, name: str, pointer: Pointer, *, reuse: bool = False) -> int:
    """Record `pointer` as the next version of `name` and as its latest; return the number.

    Args:
        store: the store's directory.
        name: the artifact name.
        pointer: what the version stands for.
        reuse: where some version already stands for this very run, make that one the latest instead.
    """
    directory = refs_directory(store, check_name(name))
    if reuse and (latest := _latest(directory)) is not None and latest["run"] == pointer.run:
        return int(latest["version"])  # nothing to write, so that a cache hit works in a read-only store
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(directory / ".lock", timeout=LOCK_TIMEOUT_S):
            known = versions(store, name)
            same = [number for number, old in known.items() if old.run == pointer.run] if reuse else []
            number = same[-1] if same else max(known, default=0) + 1
            if not same:
                publish_bytes(directory / f"v{number}.json", pointer.to_bytes())
            value: dict[str, Any] = {"version": number, **asdict(pointer)}
            publish_bytes(directory / "latest.json", (json.dumps(value, sort_keys=True) + "\n").encode())
            return number
    except Timeout:
        raise LockedError(f"another process holds the refs of {name}", hint="try again when it has finished") from None


def latest_version(store: Path, name: str) -> int | None:
    """The number that `name` alone stands for; None where the name is unknown."""
    latest = _latest(refs_directory(store, name))
    return max(versions(store, name), default=None) if latest is None else int(latest["version"])


def _latest(directory: Path) -> dict[str, Any] | None:
    """What `latest.json` holds: a version's number and its pointer; None where there is none."""
    path = directory / "latest.json"
    try:
        held = json.loads(path.read_bytes())
        return {"version": int(held["version"]), "run": str(held["run"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(
            f"{path} is damaged", hint="remove it: the highest version then counts as latest"
        ) from None
