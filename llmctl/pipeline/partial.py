"""The mark that an unfinished run leaves, so that the same command can find it again after a kill."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from llmctl.config.errors import IntegrityError, LockedError
from llmctl.store.files import publish_bytes
from llmctl.store.layout import RunDirectory, index_file
from llmctl.store.refs import LOCK_TIMEOUT_S, Pointer, read_pointer
from llmctl.store.store import Store

Held = tuple[RunDirectory, AbstractContextManager[object]]


@dataclass(frozen=True)
class Partial:
    """The newest unfinished run of one action: `index/partial/<action key>`.

    The mark never leaves a run that a live process works on. A second process with the same action is refused
    where the stage can be resumed, since it would do the same work twice and the two could not share a state;
    else it works in a directory of its own, unmarked.
    """

    store: Store
    key: str

    @property
    def _mark(self) -> Path:
        return index_file(self.store.root, "partial", self.key)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock under which marks are looked at and set; only for as long as that takes."""
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(self._mark.with_name(".lock"), timeout=LOCK_TIMEOUT_S).acquire()
        except Timeout:
            raise LockedError("another process holds the marks of unfinished runs", hint="try again") from None
        with held:
            yield

    def marked(self) -> RunDirectory | None:
        """The run that the mark names, if its directory is there; a damaged mark counts as none."""
        try:
            pointer = read_pointer(self._mark)
        except IntegrityError:
            return None
        if pointer is None:
            return None
        name, _, run_id = pointer.run.partition("/")
        run = RunDirectory(self.store.root, name, run_id)
        return run if run.path.is_dir() else None

    def mark(self, run: RunDirectory) -> None:
        """Name `run` as the one to take over."""
        publish_bytes(self._mark, Pointer(run.key, "", "").to_bytes())

    def clear(self, run: RunDirectory) -> None:
        """Remove the mark, if it still names `run`."""
        if self.marked() == run:
            self._mark.unlink(missing_ok=True)

    def finish_commit(self) -> None:
        """Index a run that was killed between its commit and its index entries."""
        run = self.marked()
        if run is not None and run.manifest.exists():
            self.store.record(run, self.store.resolve(str(run.path)).manifest)
            self.clear(run)

    def start(self, name: str, run_id: str, *, resumable: bool, anew: bool) -> Held:
        """The run to work in, with its lock: the marked one where it goes on, else a new one.

        Args:
            name: of a new run.
            run_id: of a new run.
            resumable: whether the stage can go on from what a killed run left.
            anew: do not go on, even if it can.

        Raises:
            LockedError: the stage is resumable and another process works on the marked run.
        """
        with self._alone():
            marked = self.marked()
            try:
                taken = None if marked is None else self.take_over(marked, resumable=resumable and not anew)
            except LockedError:
                if resumable:
                    raise
                return self.store.begin(name, run_id)
            run, held = taken or self.store.begin(name, run_id)
            self.mark(run)
            return run, held

    def take_over(self, run: RunDirectory, *, resumable: bool) -> Held | None:
        """The marked run with its lock, emptied but for its work; sweep it where it cannot be resumed.

        Raises:
            LockedError: another process works on it.
        """
        run, held = self.store.begin(run.name, run.run_id)
        if run.manifest.exists():  # another process has committed it since the mark was read
            with held:
                shutil.rmtree(run.work)
                return None
        if not resumable:
            with held:
                shutil.rmtree(run.path, ignore_errors=True)
            return None
        shutil.rmtree(run.data)
        run.data.mkdir()
        return run, held
