"""A rank that hangs is named, and the run ends: collective operations would wait for it for ever.

Every rank notes in a file of its own where it is: the step and how far it got in it. The ranks that wait for another
are further on than that one, so where no rank has moved for a while, the one that is behind all others hangs.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from llmctl.config.errors import LlmctlError

BEATS = "beat-*"  # the star is the rank
CHECKS = 10  # of the clock in the time that a rank may stand still


class StalledError(LlmctlError):
    """A rank stood still for too long; nothing is published, and the same command resumes."""


class Beat:
    """Where one rank is, for others to see.

    Args:
        work: a directory that all ranks see.
        rank: of this process.
    """

    def __init__(self, work: Path, rank: int) -> None:
        self._path = work / BEATS.replace("*", f"{rank:05d}")
        self._path.unlink(missing_ok=True)  # of an earlier attempt
        self._count = 0

    def at(self, step: int, doing: str) -> None:
        """This rank begins to do something in a step, later than everything that it noted before."""
        self._count += 1
        temporary = self._path.with_name(f".{self._path.name}")
        temporary.write_text(json.dumps({"count": self._count, "step": step, "doing": doing}), encoding="utf-8")
        os.replace(temporary, self._path)


def stalled(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """Which ranks hang, if no rank has moved between two readings of the beats; None where one has."""
    if not now or before != now:
        return None
    read = {name: json.loads(text) for name, text in now.items()}
    least = min(int(beat["count"]) for beat in read.values())
    behind = [name for name, beat in sorted(read.items()) if beat["count"] == least]
    if len(behind) == len(read) > 1:
        where = f"{read[behind[0]]['doing']} of step {read[behind[0]]['step'] + 1}"
        return f"all {len(read)} ranks stand still in {where}"
    names = ", ".join(str(int(name.rpartition("-")[2])) for name in behind)
    where = f"{read[behind[0]]['doing']} of step {read[behind[0]]['step'] + 1}"
    return f"rank {names} hangs in {where}, and the others wait for it"


def beats(work: Path, world_size: int) -> dict[str, str]:
    """What each rank noted last, by the name of its file; an earlier attempt may have had more ranks."""
    found = {}
    for path in (work / BEATS.replace("*", f"{rank:05d}") for rank in range(world_size)):
        try:
            found[path.name] = path.read_text(encoding="utf-8")
        except OSError:  # not there yet
            continue
    return found


class Watchdog:
    """On rank 0, a thread that looks whether any rank still moves.

    Args:
        work: where the beats are.
        world_size: number of ranks.
        patience_s: seconds in which some rank must have moved; 0 looks at nothing.
        bark: called once, from the thread, with the error.
    """

    def __init__(self, work: Path, world_size: int, patience_s: float, bark: Callable[[StalledError], None]) -> None:
        self._work, self._world_size, self._patience, self._bark = work, world_size, patience_s, bark
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def _watch(self) -> None:
        before, since = beats(self._work, self._world_size), time.monotonic()
        while not self._over.wait(self._patience / CHECKS):
            now = beats(self._work, self._world_size)
            if now != before:
                before, since = now, time.monotonic()
            elif time.monotonic() - since >= self._patience and (found := stalled(before, now)) is not None:
                hint = "the same command resumes from the last saved step; watchdog_s=0 waits for ever"
                self._bark(StalledError(f"{found}: no rank has moved for {self._patience:g} s", hint=hint))
                return

    def __enter__(self) -> Self:
        if self._patience > 0:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
