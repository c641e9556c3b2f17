"""The mark that an unfinished run leaves, so that the same command can find it again after a kill."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass

from llmctl.config.errors import IntegrityError, LockedError
from llmctl.store.files import publish_bytes
from llmctl.store.layout import RunDirectory, index_file
from llmctl.store.refs import Pointer, read_pointer
from llmctl.store.store import Store

Held = tuple[RunDirectory, AbstractContextManager[object]]


@dataclass(frozen=True)
class Partial:
    """The newest unfinished run of one action: `index/partial/<action key>`.

    Several processes may run the same action at once; each works in its own directory, and the mark is the
    last one's. A run that another process holds is left alone.
    """

    store: Store
    key: str

    def marked(self) -> RunDirectory | None:
        """The run that the mark names, if its directory is there; a damaged mark counts as none."""
        try:
            pointer = read_pointer(index_file(self.store.root, "partial", self.key))
        except IntegrityError:
            return None
        if pointer is None:
            return None
        name, _, run_id = pointer.run.partition("/")
        run = RunDirectory(self.store.root, name, run_id)
        return run if run.path.is_dir() else None

    def mark(self, run: RunDirectory) -> None:
        """Name `run` as the one to take over."""
        publish_bytes(index_file(self.store.root, "partial", self.key), Pointer(run.key, "", "").to_bytes())

    def clear(self, run: RunDirectory) -> None:
        """Remove the mark, if it still names `run`."""
        if self.marked() == run:
            index_file(self.store.root, "partial", self.key).unlink(missing_ok=True)

    def finish_commit(self) -> None:
        """Index a run that was killed between its commit and its index entries."""
        run = self.marked()
        if run is not None and run.manifest.exists():
            self.store.record(run, self.store.resolve(str(run.path)).manifest)
            self.clear(run)

    def take_over(self, *, resumable: bool) -> Held | None:
        """The marked run with its lock, emptied but for its work; sweep it where it cannot be resumed."""
        run = self.marked()
        if run is None:
            return None
        try:
            run, held = self.store.begin(run.name, run.run_id)
        except LockedError:
            return None
        if run.manifest.exists():  # another process has committed it since the mark was read
            with held:
                return None
        if not resumable:
            with held:
                shutil.rmtree(run.path, ignore_errors=True)
            return None
        shutil.rmtree(run.data)
        run.data.mkdir()
        return run, held
