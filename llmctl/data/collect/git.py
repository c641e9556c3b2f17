"""Git repositories: the files that are tracked at HEAD, read through git's plumbing.

A repository is foreign data, and its own configuration can name programs. Only commands are used that read
objects (`rev-parse`, `ls-tree`, `cat-file`), with every transport forbidden, so that a partial clone fetches
nothing, and without the user's or the system's configuration.
"""

from __future__ import annotations

import datetime as dt
import io
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, cast
from urllib.parse import quote, urlsplit, urlunsplit

from llmctl.config.collect import CollectConfig
from llmctl.config.errors import InputError
from llmctl.data.collect.document import Document, Tally, UnreadableError
from llmctl.data.collect.entry import Entry, Reading
from llmctl.data.collect.formats import format_of, safe_name
from llmctl.data.collect.read import read_entry
from llmctl.data.collect.spdx import is_license_file, joined, license_of
from llmctl.data.collect.streams import Budget
from llmctl.store.manifest import sha256_of

SAFE = ("-c", "safe.directory=*", "-c", "core.fsmonitor=false")
FILE_MODES = {"100644", "100755", "100664"}
LICENSE_BYTES = 1 << 20
LARGEST_BLOB_BYTES = 64 << 20  # one is in memory at a time
OBJECT = re.compile(rb"[0-9a-f]{40,64} blob (\d{1,15})\n")


@dataclass(frozen=True)
class Blob:
    """A tracked file: its object and its path."""

    oid: str
    path: str
    size: int


def is_repository(path: Path) -> bool:
    """Whether `path` is a folder with `.git`, or a bare repository."""
    try:
        return (path / ".git").exists() or all((path / name).exists() for name in ("HEAD", "objects", "refs"))
    except PermissionError:  # whoever lists the folder will say so
        return False


def _git(path: str, *command: str) -> list[str]:
    place = path if not Path(path, ".git").exists() else str(Path(path, ".git"))
    return ["git", *SAFE, f"--git-dir={place}", *command]


def _environment() -> dict[str, str]:
    """Nothing of the user's git: no configuration, no GIT_DIR, no prompt, no fetching of what is missing."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C",
        "GIT_ALLOW_PROTOCOL": "none",  # stronger than whatever the repository allows
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
    }


def _answer(path: str, *command: str) -> bytes:
    """What git prints. Raises `InputError` where it is missing or refuses."""
    try:
        done = subprocess.run(
            _git(path, *command), env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except OSError as error:
        raise InputError(f"{path} is a git repository, and git cannot be run: {error}", hint="install git") from error
    if done.returncode:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
        raise InputError(f"{path}: git {command[0]} says: {said}", hint="check that the repository has a commit")
    return done.stdout


@dataclass(frozen=True)
class GitPiece:
    """Some files of one repository.

    Attributes:
        path: of the repository.
        source, url, time, license: what its documents carry; the url lacks the file's path.
        blobs: the files.
    """

    path: str
    source: str
    url: str
    time: str
    license: str
    blobs: tuple[Blob, ...]

    @property
    def size(self) -> int:
        """Bytes to read."""
        return sum(blob.size for blob in self.blobs)

    def documents(self, config: CollectConfig, tally: Tally) -> Iterator[Document]:
        """The files in the order of their paths."""
        license_id = self.license or config.license
        with subprocess.Popen(
            _git(self.path, "cat-file", "--batch"),
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as git:
            asked, answers = cast("IO[bytes]", git.stdin), cast("IO[bytes]", git.stdout)
            for blob in self.blobs:
                where = f"{self.path}:{blob.path}"
                if blob.size > LARGEST_BLOB_BYTES:
                    tally.drop("too_large", f"{where} is longer than {LARGEST_BLOB_BYTES} bytes")
                    continue
                try:
                    content = _blob(asked, answers, blob.oid, where)
                except UnreadableError as fault:
                    tally.drop(fault.reason, fault.what)
                    continue
                url = f"{self.url}#{quote(blob.path)}" if self.url else ""
                budget = Budget(partial(len, content), config.max_ratio)
                reading = Reading(self.source, config, tally, budget, license_id, url, self.time)
                handle = io.BufferedReader(io.BytesIO(content))
                yield from read_entry(Entry(blob.path, cast("BinaryIO", handle), where, reading))
            asked.close()


def _blob(asked: IO[bytes], answers: IO[bytes], oid: str, where: str) -> bytes:
    asked.write(oid.encode() + b"\n")
    asked.flush()
    head = answers.readline(4096)
    found = OBJECT.fullmatch(head)
    if not found:
        raise UnreadableError("damaged", f"{where}: git has no object {oid}")
    content = answers.read(int(found[1]))
    answers.read(1)
    return content


class GitSource:
    """A repository at its HEAD.

    Args:
        path: a folder with `.git`, or a bare repository.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self.name = safe_name(path.resolve().name.removesuffix(".git"))
        self._commit = _answer(self._path, "rev-parse", "--verify", "HEAD^{commit}").decode().strip()

    def fingerprint(self) -> str:
        """The digest of the name and the commit, which git derives from all content."""
        return sha256_of({"name": self.name, "commit": self._commit})

    def pieces(self, tally: Tally, most: int) -> Iterator[GitPiece]:
        """The tracked files that a reader knows, in groups of about `most` bytes."""
        blobs = list(self._blobs(tally))
        license_id = joined(
            license_of(_answer(self._path, "cat-file", "blob", blob.oid).decode(errors="replace"))
            for blob in blobs
            if "/" not in blob.path and is_license_file(blob.path) and blob.size <= LICENSE_BYTES
        )
        whole = GitPiece(self._path, self.name, self._url(), self._time(), license_id, ())
        group: list[Blob] = []
        size = 0
        for blob in blobs:
            if not format_of(blob.path):
                tally.skipped["unknown_format"] += 1
                continue
            if group and size + blob.size > most:
                yield replace(whole, blobs=tuple(group))
                group, size = [], 0
            group.append(blob)
            size += blob.size
        if group:
            yield replace(whole, blobs=tuple(group))

    def _blobs(self, tally: Tally) -> Iterator[Blob]:
        listing = _answer(self._path, "ls-tree", "-r", "-l", "-z", "--full-tree", self._commit)
        for line in listing.split(b"\0"):
            if not line:
                continue
            facts, _, path = line.partition(b"\t")
            mode, kind, oid, size = facts.decode().split()
            if kind == "commit":
                tally.skipped["submodule"] += 1
            elif mode not in FILE_MODES:
                tally.skipped["link"] += 1
            else:  # an object that is missing has no size; whoever asks for it will count it
                yield Blob(oid, path.decode("utf-8", "replace"), int(size) if size.isdigit() else 0)

    def _time(self) -> str:
        """When HEAD was committed, in UTC."""
        header = _answer(self._path, "cat-file", "commit", self._commit).partition(b"\n\n")[0]
        found = re.search(rb"^committer .*> (\d{1,11}) [+-]\d{4}$", header, re.MULTILINE)
        if not found:
            return ""
        moment = dt.datetime.fromtimestamp(int(found[1]), dt.UTC)
        return moment.isoformat().replace("+00:00", "Z")

    def _url(self) -> str:
        """`https://host/owner/name@commit` where the repository has such an origin; no user or password in it."""
        try:
            origin = _answer(self._path, "config", "--local", "--no-includes", "--get", "remote.origin.url")
        except InputError:
            return ""
        parts = urlsplit(origin.decode(errors="replace").strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return ""
        host = parts.hostname + (f":{parts.port}" if parts.port else "")
        return urlunsplit((parts.scheme, host, parts.path.removesuffix(".git"), "", "")) + f"@{self._commit}"
