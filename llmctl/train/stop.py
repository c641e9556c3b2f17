"""Stopping on request at the end of a step, with the state saved."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

STOP_FILE = "stop"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Notices SIGINT, SIGTERM or a file that asks the run to stop; a second SIGINT interrupts at once.

    Args:
        work: directory in which a file `stop` is a request.
        signals: whether to take the signals over; only the main thread can.
    """

    def __init__(self, work: Path, *, signals: bool) -> None:
        self.file = work / STOP_FILE
        self._signals = signals and threading.current_thread() is threading.main_thread()
        self._seen = False
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether anyone asked."""
        return self._seen or self.file.exists()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._seen = True

    def __enter__(self) -> Self:
        if self._signals:
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
