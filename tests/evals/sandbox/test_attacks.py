"""Programs that try to reach the machine. Each reports what it reached, and what it would have changed is looked at."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from llmctl.evals.sandbox.box import Sandbox
from llmctl.evals.sandbox.verdict import Limits
from tests.evals.sandbox.attacks import ATTACKS, BOMBS, PREAMBLE


@dataclass(frozen=True)
class Canary:
    """What an attack would touch outside."""

    file: Path
    names: str


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canary]:
    file = tmp_path / "canary"
    file.write_text("alive", encoding="utf-8")
    tmp_path.chmod(0o777)
    file.chmod(0o666)
    monkeypatch.setenv("LLMCTL_CANARY", "secret")
    abstract = f"llmctl-canary-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind("\0" + abstract)
        unix.listen()
        for listener in (tcp, unix):
            listener.settimeout(0)
        port = tcp.getsockname()[1]
        interpreter = sys.base_prefix.split("/")[1]  # the folders above it exist inside, empty but for it
        names = (
            f"HOST, PORT, CANARY, ABSTRACT, INTERPRETER = {(os.getpid(), port, str(file), abstract, interpreter)!r}\n"
        )
        yield Canary(file, names)
        for listener in (tcp, unix):
            with pytest.raises(BlockingIOError):
                listener.accept()
    assert file.read_text(encoding="utf-8") == "alive"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["canary"]


@pytest.fixture
def quiet(box: Sandbox) -> Iterator[None]:
    """No signal reaches this process, and nothing is left of a run: no process, no mount."""
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8")
    assert box.refusal() is None  # the launcher runs
    there = len(psutil.Process().children(recursive=True))  # with it, and with what other tests left in this process
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == []
    until = time.monotonic() + 2  # a supervisor ends just after its report
    while len(left := psutil.Process().children(recursive=True)) > there and time.monotonic() < until:
        time.sleep(0.01)
    assert len(left) <= there
    assert Path("/proc/self/mounts").read_text(encoding="utf-8") == mounts


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_nothing_is_reached(box: Sandbox, canary: Canary, quiet: None, attack: str) -> None:
    verdict = box.check(canary.names + PREAMBLE + attack, "assert f() == [], f()")
    assert (verdict.kind, verdict.message) == ("passed", None)


@pytest.mark.parametrize("attack", ["environment", "files of the host", "the parent through /proc", "writing outside"])
def test_the_attacks_would_be_seen(canary: Canary, attack: str) -> None:
    """The same programs without a sandbox, as a user of no rights, reach what they are after."""
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    code = canary.names + PREAMBLE + ATTACKS[attack].replace('"ab"', '"rb"') + "\nprint(len(hits))"
    done = subprocess.run(
        [*as_nobody, "/usr/bin/env", "python3", "-c", code], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 0


@pytest.mark.parametrize("processes", [1, 32])
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_end_in_time(box: Sandbox, canary: Canary, quiet: None, bomb: str, processes: int) -> None:
    limits = Limits(timeout_s=0.3, processes=processes, output_bytes=1 << 16)
    verdict = box.check(bomb, "assert f() == 2", calls=["f"], limits=limits)
    assert verdict.kind in {"failed", "timed out", "memory"}
    assert verdict.seconds <= limits.timeout_s + 1
    assert box.check("def f(): return 1", "assert f() == 1").kind == "passed"  # and the next one runs as ever


def test_runs_do_not_see_one_another(box: Sandbox) -> None:
    """Two programs at once: neither sees the other's process, files or abstract sockets."""
    program = (
        "import os, time\nopen('/tmp/mine', 'x')\ntime.sleep(0.3)\n"
        "def f(): return [os.listdir('/tmp'), os.getpid(), [p for p in range(2, 300) if alive(p)]]\n"
        "def alive(pid):\n    try: os.kill(pid, 0)\n    except ProcessLookupError: return False\n    return True"
    )
    kinds: list[str] = []
    tests = "assert f() == [['mine'], 1, []], f()"
    threads = [threading.Thread(target=lambda: kinds.append(box.check(program, tests).kind)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kinds == ["passed", "passed"]
