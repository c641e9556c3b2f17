"""Sources that are files, folders and glob patterns."""

from __future__ import annotations

import glob
import io
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, cast

from llmctl.config.collect import CollectConfig
from llmctl.config.errors import InputError, IntegrityError
from llmctl.data.collect.document import Document, Tally
from llmctl.data.collect.entry import Entry, Reading
from llmctl.data.collect.fetch import Haul
from llmctl.data.collect.formats import KNOWN, format_of, safe_name, stem
from llmctl.data.collect.read import read_entry
from llmctl.data.collect.streams import BLOCK_BYTES, Budget, HashedFile
from llmctl.store.files import explained, sha256_file
from llmctl.store.layout import STORE_FILE
from llmctl.store.manifest import sha256_of


@dataclass(frozen=True)
class FilePiece:
    """One file of the disk.

    Attributes:
        path: where it lies.
        name: its path within the source.
        source: what its documents carry where they name none.
        size: bytes on the disk.
        sha256: of its bytes, as the action key has them.
        strict: whether damage in it is an error.
        url, time: for documents that name none: where the file came from, and of when it is.
    """

    path: str
    name: str
    source: str
    size: int
    sha256: str
    strict: bool
    url: str = ""
    time: str = ""

    def documents(self, config: CollectConfig, tally: Tally) -> Iterator[Document]:
        """What a reader finds in the file.

        Raises:
            InputError: it cannot be read, or is damaged and strict.
            IntegrityError: it is not the file any more that the action key was made from.
        """
        with explained(self.path), HashedFile(self.path) as file:
            budget = Budget(file.distinct, config.max_ratio)
            tally.position = file.distinct
            reading = Reading(self.source, config, tally, budget, config.license, self.url, self.time)
            handle = cast("BinaryIO", io.BufferedReader(file, BLOCK_BYTES))
            yield from read_entry(Entry(self.name, handle, self.path, reading, strict=self.strict))
            if file.digest() != self.sha256:
                raise IntegrityError(
                    f"{self.path} changed while it was being read", hint="run the same command again when it is at rest"
                )


@dataclass(frozen=True)
class Found:
    """A file that was found.

    Attributes:
        path: where it lies.
        name: its path within the source.
        url, time: where a fetched file came from, and when it was last changed there.
    """

    path: Path
    name: str
    url: str = ""
    time: str = ""


class FileSource:
    """Files under one base.

    Args:
        name: what documents without a source of their own carry.
        found: the files.
        skipped: how much was left out, by reason.
        strict: whether damage is an error: the user named the one file.
    """

    def __init__(self, name: str, found: list[Found], skipped: Counter[str], *, strict: bool) -> None:
        self.name = safe_name(name)
        self._found = sorted(found, key=lambda file: file.name)
        self._skipped = skipped
        self._strict = strict

    def fingerprint(self) -> str:
        """The digest of the source's name and of its files' names and bytes; folder location plays no part.

        URL and time of fetched files do, since documents carry them.
        """
        files = [
            [file.name, _digest(file.path)[0], *([file.url, file.time] if file.url else [])] for file in self._found
        ]
        return sha256_of({"name": self.name, "files": files})

    def pieces(self, tally: Tally, most: int) -> Iterator[FilePiece]:
        """One piece a file, by name."""
        del most  # a file is not divided
        tally.skipped.update(self._skipped)
        for file in self._found:
            sha256, size = _digest(file.path)
            yield FilePiece(str(file.path), file.name, self.name, size, sha256, self._strict, file.url, file.time)


def _digest(path: Path) -> tuple[str, int]:
    """(SHA-256, bytes) of a file."""
    with explained(str(path)):
        state = path.stat()
        return _hash_once(path, state.st_size, state.st_mtime_ns, state.st_ino, state.st_dev), state.st_size


@cache
def _hash_once(path: Path, *state: int) -> str:
    """A file is hashed for the action key, and its hash is asked for again when it is read; the readers check it."""
    del state
    return sha256_file(path)


def open_haul(argument: str, haul: Haul) -> FileSource:
    """The source that fetched files make.

    Raises:
        InputError: where none of them has a known format.
    """
    known = [Found(file.path, file.name, file.url, file.time) for file in haul.files if format_of(file.name)]
    if not known:
        names = ", ".join(file.name for file in haul.files[:3]) or "nothing of a known format"
        raise InputError(f"{argument} gave {names}, which is not read", hint=f"known: {KNOWN}")
    skipped = Counter({"unknown_format": haul.skipped} if haul.skipped else {})
    name = stem(haul.name) if len(known) == 1 else haul.name
    return FileSource(name, known, skipped, strict=len(known) == 1)


def open_source(argument: str) -> FileSource:
    """The source that a file, folder or glob pattern stands for. Contents are not read yet.

    Raises:
        InputError: where nothing is there, a folder cannot be listed, or a named file's format is not known.
    """
    path = Path(argument).expanduser()
    with explained(argument):
        exists = path.exists()
    if not exists and glob.has_magic(argument):
        return _pattern(argument, path)
    if not exists:
        raise InputError(f"{argument} does not exist", hint="check the path, or write python-docs")
    if path.is_dir():
        found, skipped = _walk(path)
        return FileSource(path.resolve().name, found, skipped, strict=False)
    if not path.is_file():
        raise InputError(f"{argument} is no regular file", hint="write it to a file first")
    if not format_of(path.name):
        raise InputError(f"{argument}: unknown format {path.suffix!r}", hint=f"known: {KNOWN}")
    return FileSource(stem(path.name), [Found(path, path.name)], Counter(), strict=True)


def _walk(folder: Path) -> tuple[list[Found], Counter[str]]:
    """Files of known formats below `folder`, and counts of what is left out.

    A store is left out whole, as it holds what was made from such files. Links are left out where they lead
    out of the folder, and those to folders always, since they can lead in circles.
    """

    def fail(error: OSError) -> None:
        raise error

    found: list[Found] = []
    skipped: Counter[str] = Counter()
    with explained(str(folder)):
        inside = folder.resolve()
        for directory, folders, names in os.walk(folder, onerror=fail):
            if STORE_FILE in names:
                skipped["store"] += 1
                folders.clear()
                continue
            here = Path(directory)
            skipped["hidden"] += sum(name.startswith(".") for name in (*folders, *names))
            skipped["link"] += sum((here / name).is_symlink() for name in folders if not name.startswith("."))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for path in (here / name for name in names if not name.startswith(".")):
                if reason := _left_out(path, inside):
                    skipped[reason] += 1
                else:
                    found.append(Found(path, path.relative_to(folder).as_posix()))
    return found, +skipped


def _left_out(path: Path, inside: Path) -> str:
    """Why a file is no member of a folder; "" where it is one."""
    if path.is_symlink():
        target = path.resolve()
        if not target.is_relative_to(inside) or any(part.startswith(".") for part in target.relative_to(inside).parts):
            return "link"
    if not path.is_file():
        return "special" if path.exists() else "link"
    return "" if format_of(path.name) else "unknown_format"


def _pattern(argument: str, pattern: Path) -> FileSource:
    found: list[Found] = []
    skipped: Counter[str] = Counter()
    base = _static_base(pattern)
    with explained(argument):
        inside = base.resolve()
        for match in glob.glob(str(pattern), recursive=True):  # noqa: PTH207 - Path.glob takes no absolute pattern
            path = Path(match)
            if path.is_dir():
                continue
            if reason := _left_out(path, inside):
                skipped[reason] += 1
            else:
                found.append(Found(path, path.relative_to(base).as_posix()))
    if not found:
        raise InputError(f"no readable file matches {argument}", hint=f"known formats: {KNOWN}")
    return FileSource(inside.name, found, skipped, strict=False)


def _static_base(pattern: Path) -> Path:
    """The folder above the first part of a pattern that has a wildcard."""
    base = Path()
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        base /= part
    return base
