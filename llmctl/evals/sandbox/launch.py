"""The host's side of the launcher: start it, ask it for runs, end it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import llmctl

_START_S = 20.0  # an idle machine needs 0.2
_END_S = 5.0
_CODE_ROOT = Path(llmctl.__file__).parents[1]
_CODE = """
import sys
import threading
sys.path.insert(0, sys.argv[2])
from llmctl.evals.sandbox.inside.launcher import main
del sys.path[0]
main(int(sys.argv[1]), sys.argv[3:])
"""
# No site-packages, no path of the current folder, nothing written beside the sources; UTF-8 whatever the locale.
_OPTIONS = ("-s", "-S", "-P", "-B", "-X", "utf8")


class RefusedError(Exception):
    """The sandbox cannot be had on this system; the message is the reason."""


def _interpreter() -> str:
    """The interpreter itself, not the one of a virtual environment, where this user may execute it."""
    base = str(getattr(sys, "_base_executable", sys.executable))
    return base if os.access(base, os.X_OK) else sys.executable


class Launcher:
    """A running launcher.

    Attributes:
        isolation: what it holds programs with.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Start it.

        Args:
            paths: folders that programs may read and import from, beside the standard library.

        Raises:
            RefusedError: the system lacks what is needed.
        """
        if sys.platform != "linux":
            raise RefusedError(f"the sandbox needs Linux, this is {sys.platform}")
        self._closing = threading.Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = [str(theirs.fileno()), str(_CODE_ROOT), *map(str, paths)]
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [_interpreter(), *_OPTIONS, "-c", _CODE, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    cwd="/",
                    env={"PYTHONHASHSEED": "0"},  # the same program prints the same; nothing of the host's environment
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except OSError as error:
                self._control.close()
                raise RefusedError(f"the interpreter does not start: {error}") from error
        self.isolation = self._greeting()

    def _greeting(self) -> tuple[str, ...]:
        self._control.settimeout(_START_S)
        try:
            said = json.loads(self._control.recv(1 << 16) or b"{}")
        except TimeoutError:
            said = {"refused": f"the launcher did not start within {_START_S:g} s"}
        self._control.settimeout(None)
        if "ready" in said:
            return tuple(said["ready"])
        last_words = self.close().strip().rpartition("\n")[2]
        raise RefusedError(said.get("refused") or f"the launcher ended: {last_words}")

    def ask(self, side: str, fds: Mapping[str, int], limits: Mapping[str, Any]) -> None:
        """Have `side` run with these descriptors; they can be closed here afterwards.

        Raises:
            OSError: the launcher is gone.
        """
        request = json.dumps({"side": side, "fds": list(fds), "limits": limits}).encode()
        socket.send_fds(self._control, [request], list(fds.values()))

    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def close(self) -> str:
        """End it and every run with it; give what it wrote on standard error."""
        with self._closing:  # two threads may find it broken
            return self._closed()

    def _closed(self) -> str:
        self._control.close()
        if self._process.stderr is None or self._process.stderr.closed:
            return ""
        try:
            _, said = self._process.communicate(timeout=_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            _, said = self._process.communicate()
        return said.decode(errors="replace")
