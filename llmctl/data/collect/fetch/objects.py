"""Downloads from object stores: files, folders and patterns; many files at once, each resumed where it stopped."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from llmctl.config.errors import InputError, LlmctlError
from llmctl.data.collect.fetch.checksums import wanted_sha256
from llmctl.data.collect.fetch.client import with_retries
from llmctl.data.collect.fetch.downloads import Fetched, Record, Slot
from llmctl.data.collect.fetch.meter import Meter
from llmctl.data.collect.fetch.network import Deadline, Limits, LostError
from llmctl.data.collect.fetch.object_stores import ObjectStore
from llmctl.data.collect.fetch.web import safe_file_name

AT_ONCE = 8
BLOCK_BYTES = 4 << 20
MAGIC = re.compile(r"[*?\[]")
DIGEST = re.compile(r"(.*)#(sha256=.*)", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """One file of a store.

    Attributes:
        path: `bucket/key`, at a fixed commit where the store has such.
        address: `bucket/key` as the user would write it, the same at every commit.
        name: within what the user asked for.
        info: the listing's entry.
    """

    path: str
    address: str
    name: str
    info: Mapping[str, Any]


@contextmanager
def told(where: str) -> Iterator[None]:
    """Turn what fsspec and the libraries under it raise into our errors.

    Raises:
        InputError: where something is not there or not allowed.
        LostError: for everything else, which another try may mend.
    """
    try:
        yield
    except (LlmctlError, LostError):
        raise
    except FileNotFoundError as error:
        raise InputError(f"there is nothing at {where}", hint="check the address") from error
    except PermissionError as error:
        hint = "credentials come from AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS or HF_TOKEN"
        raise InputError(f"{where} may not be read: {error}", hint=hint) from error
    except Exception as error:  # each library has error classes of its own
        raise LostError(f"{where} could not be read: {error or type(error).__name__}") from error


def split_digest(address: str) -> tuple[str, str]:
    """(address, digest or "") of `address#sha256=…`; a key may hold any other `#`.

    Raises:
        InputError: where the digest is none.
    """
    parts = DIGEST.fullmatch(address)
    return (parts[1], wanted_sha256(parts[2])) if parts else (address, "")


def listed(store: ObjectStore, path: str, where: str, limits: Limits) -> tuple[str, list[Entry]]:
    """(a name for all, the files behind `path` sorted by name): one file, a folder's, or a pattern's.

    Raises:
        InputError: where there is none.
    """

    def attempt() -> tuple[str, list[Entry]]:
        with told(where):
            return _list(store, path.rstrip("/"))

    base, entries = with_retries(attempt, limits, Deadline(limits.total_s))
    if not entries:
        raise InputError(f"there is nothing at {where}", hint="check the address")
    return base, sorted(entries, key=lambda entry: entry.name)


def _list(store: ObjectStore, path: str) -> tuple[str, list[Entry]]:
    parts = PurePosixPath(path).parts
    static = next((number for number, part in enumerate(parts) if MAGIC.search(part)), len(parts))
    base = "/".join(parts[:static])
    folder = store.settled(base)
    if static < len(parts):
        found = store.files.glob("/".join((folder, *parts[static:])), detail=True)
    else:
        info = store.files.info(folder)
        if info["type"] == "file":
            return parts[-1], [Entry(folder, base, parts[-1], info)]
        found = store.files.find(folder, detail=True)
    paths = [path for path, info in found.items() if info["type"] == "file" and not path.endswith("/")]
    names = [path.removeprefix(f"{folder}/") for path in paths]
    entries = [Entry(path, f"{base}/{name}", name, found[path]) for path, name in zip(paths, names, strict=True)]
    return parts[static - 1], entries


def fetch_objects(
    store: ObjectStore, scheme: str, entries: list[Entry], wanted: str, directory: Path, limits: Limits, meter: Meter
) -> list[Fetched]:
    """Bring all entries into their slots, several at a time; the results are in the entries' order.

    Raises:
        InputError: for the first that is missing, too large or damaged; what others have so far is kept.
    """
    stop = threading.Event()
    for entry in entries:
        meter.expect(store.version(entry.info).bytes)

    def one(entry: Entry) -> Fetched:
        slot = Slot(directory, f"{scheme}://{entry.address}")
        with slot.held(limits.total_s):
            record = _Download(store, entry, slot, limits, meter, stop.is_set).record(wanted)
        meter.done()
        return slot.fetched(record, entry.name)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        tasks = [pool.submit(one, entry) for entry in entries]
        try:
            return [task.result() for task in tasks]
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class _Download:
    """One entry's download over all its tries."""

    def __init__(
        self,
        store: ObjectStore,
        entry: Entry,
        slot: Slot,
        limits: Limits,
        meter: Meter,
        stopped: Callable[[], bool],
    ) -> None:
        self.store, self.entry, self.slot = store, entry, slot
        self.limits, self.meter, self.stopped = limits, meter, stopped
        self.version = store.version(entry.info)

    def record(self, wanted: str) -> Record:
        """The finished download: the one that is there if the store has no newer, else a new one."""
        held = self.slot.record()
        unchanged = held is not None and held.etag == self.version.etag != ""
        if held is not None and (held.sha256 == wanted if wanted else unchanged):
            self.meter.add(held.bytes)
            return held
        if (self.version.bytes or 0) > self.limits.max_bytes:
            raise InputError(
                f"{self.slot.url} has more than {self.limits.max_bytes} bytes", hint="raise max_download_bytes"
            )
        partial = self.slot.partial
        partial.load()
        if partial.version != self.version or not self.version.etag:
            partial.begin(self.version)
        self.meter.add(partial.bytes)
        deadline = Deadline(self.limits.total_s)
        promised = with_retries(lambda: self._attempt(deadline), self.limits, deadline, lambda: partial.bytes)
        name = safe_file_name(PurePosixPath(self.entry.path).name)
        checks = {**promised, "sha256": wanted} if wanted else promised
        return self.slot.finish(name, self.version, self.version.last_modified, checks)

    def _attempt(self, deadline: Deadline) -> dict[str, str]:
        """Read what is missing; the digests that the store promises."""
        partial = self.slot.partial
        with told(self.slot.url):
            promised = self.store.promised(self.entry.info)
        for block in self._blocks(partial.bytes):
            deadline.remaining()
            if self.stopped():
                raise InputError(f"{self.slot.url} was not finished", hint="run the same command again")
            partial.write(block)
            self.meter.add(len(block))
        if partial.bytes != self.version.bytes:
            partial.begin(self.version)
            raise LostError(f"{self.slot.url} is not as long as the store says")
        return promised

    def _blocks(self, start: int) -> Iterator[bytes]:
        """The bytes from `start` on."""
        with told(self.slot.url), self.store.files.open(self.entry.path, "rb", block_size=BLOCK_BYTES) as handle:
            if self.store.version(handle.details).etag != self.version.etag:
                raise InputError(f"{self.slot.url} was changed while it was read", hint="run the same command again")
            handle.seek(start)
            while block := handle.read(BLOCK_BYTES):
                yield block
