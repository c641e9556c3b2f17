"""Where downloads lie: one folder for each URL, with what is finished and what is under way.

    <downloads>/<sha256 of the URL, 32 digits>/fetched.json         the newest finished download (`Record`)
    <downloads>/<…>/<sha256 of the bytes, 16 digits>/<name>         its bytes; never changed once there
    <downloads>/<…>/partial.tmp, partial.json                       bytes so far, and of which version they are

Everything may be deleted at any time; it is then downloaded again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from llmctl.config.errors import InputError, LockedError
from llmctl.data.collect.fetch.checksums import Digests, compare
from llmctl.store.files import explained, publish_bytes, sha256_file, sync_directory

MARK_BYTES = 16 << 20  # so often the bytes so far are made durable; a power cut costs at most this much
READ_ONLY = 0o444


@dataclass(frozen=True, slots=True)
class Version:
    """What a server says about which bytes it has.

    Attributes:
        etag: as sent, quotes and `W/` included; "" where there is none.
        last_modified: as sent, or ISO 8601 from an object store; "" where there is none.
        bytes: length; None where it is not known.
    """

    etag: str = ""
    last_modified: str = ""
    bytes: int | None = None

    @property
    def condition(self) -> str:
        """What an If-Range header may carry: a strong ETag, else the date; "" where ranges must not be joined."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


@dataclass(frozen=True, slots=True)
class Record:
    """The sidecar of a finished download, `fetched.json`.

    Attributes:
        url: without its fragment.
        name: the file's name.
        bytes, sha256: of the file.
        etag, last_modified: the server's, "" where it sent none.
        time: `last_modified` in ISO 8601 when these bytes were first fetched, "" where there was none.
        fetched: when these bytes were first fetched (ISO 8601, UTC).
    """

    url: str
    name: str
    bytes: int
    sha256: str
    etag: str
    last_modified: str
    time: str
    fetched: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """A verified local file.

    Attributes:
        path: where it lies; its bytes never change.
        name: its name within what the user asked for, `/` between parts.
        url: where it came from.
        sha256: hex digest of its bytes.
        time: when the server says that it was last changed (ISO 8601), or "".
    """

    path: Path
    name: str
    url: str
    sha256: str
    time: str


class Slot:
    """The folder of one URL, held by this process while it is open."""

    def __init__(self, directory: Path, url: str) -> None:
        self.url = url
        self.folder = directory / hashlib.sha256(url.encode()).hexdigest()[:32]
        self.partial = Partial(self.folder)

    @contextmanager
    def held(self, timeout_s: float) -> Iterator[Slot]:
        """Keep other processes out of it; waits for one that is downloading the same URL."""
        with explained(str(self.folder)):
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.folder / ".lock").acquire(timeout=timeout_s)
        except Timeout:
            raise LockedError(f"another process downloads {self.url}", hint="wait for it, or stop it") from None
        with lock, explained(str(self.folder)):
            try:
                yield self
            finally:
                self.partial.close()

    def record(self) -> Record | None:
        """The finished download, if there is one whose bytes are as they were."""
        try:
            held = Record(**json.loads((self.folder / "fetched.json").read_bytes()))
            if sha256_file(self.path_of(held)) == held.sha256:
                return held
        except (OSError, TypeError, ValueError):  # none, or not one of ours any more
            pass
        return None

    def path_of(self, record: Record) -> Path:
        """Where a record's bytes lie."""
        return self.folder / record.sha256[:16] / record.name

    def fetched(self, record: Record, name: str) -> Fetched:
        """The file of a record, under its name within what was asked for."""
        return Fetched(self.path_of(record), name, record.url, record.sha256, record.time)

    def finish(self, name: str, version: Version, time: str, promised: Mapping[str, str]) -> Record:
        """Make the partial file the finished one.

        Raises:
            InputError: where its digests are not the promised ones; it is deleted then.
        """
        found = self.partial.digests.found()
        try:
            compare(found, promised, self.url)
        except InputError:
            self.partial.drop()
            raise
        size = self.partial.bytes
        earlier = self.record()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        same = earlier is not None and earlier.sha256 == found["sha256"]
        record = Record(
            self.url,
            name,
            size,
            found["sha256"],
            version.etag,
            version.last_modified,
            earlier.time if earlier and same else time,
            earlier.fetched if earlier and same else now,
        )
        self.partial.move_to(self.path_of(record))
        publish_bytes(self.folder / "fetched.json", (json.dumps(asdict(record), indent=2) + "\n").encode())
        return record


class Partial:
    """The bytes of a download under way, which outlive this process.

    Attributes:
        version: which bytes they belong to; None where there are none.
        bytes: how many there are.
        digests: theirs.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "partial.tmp"
        self._mark = folder / "partial.json"
        self._handle: IO[bytes] | None = None
        self._marked = 0
        self.version: Version | None = None
        self.bytes = 0
        self.digests = Digests()

    def load(self) -> None:
        """Take over what an earlier process left: the bytes up to its last durable mark."""
        try:
            mark = json.loads(self._mark.read_bytes())
            version, durable = Version(**mark["version"]), int(mark["durable"])
            whole = self._file.stat().st_size >= durable
            os.truncate(self._file, durable)
            digests = Digests()
            digests.update_from(self._file)
        except (OSError, TypeError, ValueError, KeyError):  # none, or not one of ours any more
            whole = False
        if not whole:
            self.drop()
            return
        self.version, self.bytes, self._marked, self.digests = version, durable, durable, digests

    def begin(self, version: Version) -> None:
        """Start anew with the first byte of `version`."""
        self.drop()
        self.version = version

    def write(self, block: bytes) -> None:
        """Append."""
        if self._handle is None:
            self._handle = open(self._file, "ab")  # noqa: SIM115 - kept open over many calls
        self._handle.write(block)
        self.digests.update(block)
        self.bytes += len(block)
        if self.bytes - self._marked >= MARK_BYTES:
            self.mark()

    def mark(self) -> None:
        """Make what is there durable, so that a later process may go on from here."""
        if self._handle is None or self.version is None:
            return
        self._handle.flush()
        os.fsync(self._handle.fileno())
        content = {"version": asdict(self.version), "durable": self.bytes}
        publish_bytes(self._mark, (json.dumps(content) + "\n").encode())
        self._marked = self.bytes

    def close(self) -> None:
        """Mark what is there, and close the file."""
        if self._handle is not None:
            try:
                self.mark()
            finally:
                self._handle.close()
                self._handle = None

    def drop(self) -> None:
        """Forget the bytes."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None
        self._mark.unlink(missing_ok=True)
        self._file.unlink(missing_ok=True)
        self.version, self.bytes, self._marked, self.digests = None, 0, 0, Digests()

    def move_to(self, path: Path) -> None:
        """The whole file is there: make it durable at `path`."""
        if self._handle is None:
            self._handle = open(self._file, "ab")  # noqa: SIM115 - an empty file, or one finished by an earlier process
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()
        self._handle = None
        path.parent.mkdir(exist_ok=True)
        self._file.chmod(READ_ONLY)
        os.replace(self._file, path)  # the same bytes where there was a file: its folder is named by them
        sync_directory(path.parent)
        sync_directory(path.parent.parent)
        self.drop()
