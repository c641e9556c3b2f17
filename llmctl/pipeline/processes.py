"""Processes that end with the one that started them: a killed run must leave no workers and no ranks behind."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.connection import wait

ORPHANED = 143  # as if ended by SIGTERM


def end_with_parent() -> None:
    """Leave at once when the parent of this `multiprocessing` process dies; nothing in any other process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        _end_after(lambda: wait([sentinel]))


def end_with_stdin() -> None:
    """Leave at once when stdin closes, a pipe from the process that owns this one."""
    _end_after(_drain_stdin)


def _drain_stdin() -> None:
    while os.read(0, 1):  # not sys.stdin: its lock would be held at exit
        pass


def _end_after(orphaned: Callable[[], object]) -> None:
    """End this process once `orphaned` returns; it blocks in a thread of its own."""

    def watch() -> None:
        orphaned()
        os._exit(ORPHANED)

    threading.Thread(target=watch, daemon=True, name="parent").start()
