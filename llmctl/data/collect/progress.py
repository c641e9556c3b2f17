"""How far `collect` is, in bytes of the disk, while its workers read."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llmctl.data.collect.tasks import PROGRESS_FILE
from llmctl.pipeline.job import Progress

EVERY_S = 1.0


class Watch:
    """Reports what is finished, and what the workers say of the tasks at hand, about every second.

    Args:
        progress: where to report.
        directory: the work directory of the tasks.
        total: bytes to read; 0 where that is not known.
    """

    def __init__(self, progress: Progress, directory: Path, total: int) -> None:
        self._progress = progress
        self._directory = directory
        self._total = total
        self._bytes = self._documents = 0
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def finished(self, figures: Mapping[str, Any]) -> None:
        """A task is done. What went wrong with reporting, such as a reader that left, is raised here."""
        self._bytes += figures["read"]
        self._documents += figures["counts"]["documents"]
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._ended.wait(EVERY_S):
                self._report()
        except Exception as error:  # noqa: BLE001 - raised in the thread that works
            self._error = error

    def _report(self) -> None:
        done, documents = self._bytes, self._documents
        for file in self._directory.glob(f"*.tmp/{PROGRESS_FILE}"):
            try:
                read, taken = file.read_text().split()
            except (OSError, ValueError):  # just finished, or just being written
                continue
            done += int(read)
            documents += int(taken)
        self._progress.update(min(done, self._total or done), self._total or None, "bytes", documents=documents)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
