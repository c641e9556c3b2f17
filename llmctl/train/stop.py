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
        work: directory in which a file `stop` is a request; one of an earlier attempt is removed on entering.
        signals: whether to take the signals over; only the main thread can.
        leads: whether this process heeds the file. One of several ranks is enough, and only it may remove the file.
    """

    def __init__(self, work: Path, *, signals: bool, leads: bool = True) -> None:
        self.file = work / STOP_FILE
        self._leads = leads
        self._signals = signals and threading.current_thread() is threading.main_thread()
        self._seen = False
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether anyone asked."""
        return self._seen or (self._leads and self.file.exists())

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._seen = True

    def __enter__(self) -> Self:
        if self._leads:
            self.file.unlink(missing_ok=True)
        if self._signals:
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
