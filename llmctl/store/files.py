"""Durable file writes: `.tmp`, fsync, rename, fsync the directory. Every write into a store goes through here."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from llmctl.config.errors import InputError

HASH_BLOCK_BYTES = 1 << 20


@contextlib.contextmanager
def publish(path: Path, mode: str = "wb") -> Iterator[IO[bytes]]:
    """Open `path` for writing so that it appears whole or not at all.

    The bytes go to a temporary file beside it, of this call alone, since several processes may publish one
    path at once (a pipe's stages make the store together). On a clean exit they are synced and renamed into
    place; on an exception the temporary file is removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, mode) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically and durably."""
    with publish(path) as handle:
        handle.write(content)


def sync_directory(directory: Path) -> None:
    """Make renames inside `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn operating-system failures into errors that name the place and the remedy.

    A pipe whose reader has gone is no failure of the place and passes as it is.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise explain(error, where) from error


def explain(error: OSError, where: str) -> InputError:
    """The `InputError` that tells a user what an `OSError` means here."""
    path = error.filename or where
    if error.errno == errno.ENOSPC:
        return InputError(
            f"the disk that holds {where} is full",
            hint="free space or choose another --store, then run the same command again",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"no permission for {path}", hint="check its owner and mode, or choose another path")
    if error.errno == errno.ENOENT:
        return InputError(f"{path} does not exist", hint="check the path")
    return InputError(f"{path}: {error.strerror or error}", hint="check the path and the disk")
