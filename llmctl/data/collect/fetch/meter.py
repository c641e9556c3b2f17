"""How many bytes have come, told to the user at a readable pace."""

from __future__ import annotations

import threading
import time

from llmctl.pipeline.job import Progress

INTERVAL_S = 0.2


class Meter:
    """Counts the bytes of all downloads; several threads may add."""

    def __init__(self, progress: Progress) -> None:
        self.files = 0
        self._progress = progress
        self._lock = threading.Lock()
        self._bytes = 0
        self._expected = 0
        self._told = 0.0

    def expect(self, count: int | None) -> None:
        """`count` more bytes are coming; None: nobody knows."""
        with self._lock:
            self._expected += count or 0

    def add(self, count: int) -> None:
        """`count` bytes have come, or were there already."""
        with self._lock:
            self._bytes += count
            if (now := time.monotonic()) - self._told >= INTERVAL_S:
                self._told = now
                total = self._expected if self._expected >= self._bytes else None
                self._progress.update(self._bytes, total, "bytes", files=self.files)

    def done(self) -> None:
        """One more file is there."""
        with self._lock:
            self.files += 1
