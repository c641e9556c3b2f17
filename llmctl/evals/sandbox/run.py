"""One run as the host sees it: the descriptors, the message that starts it, and the report on how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from llmctl.evals.sandbox.launch import Launcher
from llmctl.evals.sandbox.verdict import Limits

_HEADER = struct.Struct("<I")  # as in inside/wire.py
_ANSWER_BYTES = 1 << 16
GRACE_S = 15.0  # after a run's own time, until the sandbox itself counts as stuck; ending a run takes milliseconds


class StuckError(Exception):
    """The sandbox did not report in time: something is wrong with the machine, not with the program."""


@dataclass(frozen=True)
class Report:
    """How a run ended.

    Attributes:
        ended: by itself, by timeout, or stopped by the host.
        exit: exit code, negative for a signal.
        cpu_s: processor time of the program and all that it started.
        refused: why it could not be started; None where it could.
    """

    ended: str = "itself"
    exit: int = 0
    cpu_s: float = 0.0
    refused: str | None = None


class Run:
    """A run in progress."""

    def __init__(self, launcher: Launcher, side: str, limits: Limits, **fds: int) -> None:
        """Ask for it.

        Args:
            launcher: who starts it.
            side: solver, checker or script.
            limits: its own.
            fds: further descriptors for it: link, stdin, stdout, stderr.
        """
        self._leash, leash = socket.socketpair()
        self._channel, channel = socket.socketpair()
        self.deadline = time.monotonic() + limits.timeout_s + GRACE_S
        with leash, channel:
            launcher.ask(side, {"leash": leash.fileno(), "channel": channel.fileno()} | fds, asdict(limits))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._leash.close()
        self._channel.close()

    @property
    def leash(self) -> int:
        """The descriptor on which the report arrives."""
        return self._leash.fileno()

    def send(self, message: Mapping[str, Any]) -> None:
        """Give the run what it starts with; a run that has ended already shows in its report."""
        body = json.dumps(message).encode()
        self._channel.settimeout(max(0.01, self.deadline - time.monotonic()))
        with contextlib.suppress(OSError):
            self._channel.sendall(_HEADER.pack(len(body)) + body)

    def receive(self) -> dict[str, Any] | None:
        """What the run says, None where it ends or its time is over without a word."""
        return self._read(self._channel, self.deadline)

    def end(self, patience_s: float = 0.0) -> Report:
        """Stop the run where it has not ended `patience_s` from now, wait until nothing of it is left, and report.

        Raises:
            StuckError: no report came.
        """
        report = self._read(self._leash, min(self.deadline, time.monotonic() + patience_s)) if patience_s else None
        if report is None:
            with contextlib.suppress(OSError):
                self._leash.shutdown(socket.SHUT_WR)
            report = self._read(self._leash, self.deadline)
        if report is None:
            raise StuckError("the sandbox did not report the end of a run in time")
        known = Report.__dataclass_fields__.keys() & report.keys()
        return Report(**{name: report[name] for name in known})

    @staticmethod
    def _read(source: socket.socket, deadline: float) -> dict[str, Any] | None:
        """One frame, which holds an object; None where it is anything else or does not come."""
        held, wanted = b"", _HEADER.size
        while len(held) < wanted:
            source.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                part = source.recv(wanted - len(held))
            except OSError:
                return None
            held += part
            if not part:
                return None
            if len(held) == _HEADER.size == wanted:
                wanted += min(_HEADER.unpack(held)[0], _ANSWER_BYTES)
        try:
            said = json.loads(held[_HEADER.size :])
        except (ValueError, RecursionError):
            return None
        return said if isinstance(said, dict) else None


def sealed(text: str) -> int:
    """A descriptor from which `text` can be read once, and to which nothing can be written."""
    import fcntl

    fd = os.memfd_create("stdin", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(text.encode(errors="surrogateescape"))
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return fd
