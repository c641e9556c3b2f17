"""What a run keeps, written by a thread beside what it computes next."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writing:
    """Writes one thing at a time, in the order in which they are begun; what goes wrong is raised by the next call."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "writing")
        self._doing: Future[None] | None = None

    def begin(self, work: Callable[[], None]) -> None:
        """Begin to write, once what was begun before is written."""
        self.require()
        self._doing = self._thread.submit(work)

    def require(self) -> None:
        """Until all is written."""
        doing, self._doing = self._doing, None
        if doing is not None:
            doing.result()

    def close(self) -> None:
        """Until all is written; then end the thread."""
        try:
            self.require()
        finally:
            self._thread.shutdown()
