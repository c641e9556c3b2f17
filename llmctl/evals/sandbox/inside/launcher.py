"""The process that forks runs: started once with an empty environment, isolated once, then a fork for each run.

Two processes: the one that the host started, which only waits, and the first process of a process namespace, which
takes requests. When either ends, or the host does, the kernel kills every run with them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from llmctl.evals.sandbox.inside import checker, job, landlock, linux, root, script, seccomp, solver, wire

_SIDES = {"solver": solver.run, "checker": checker.run, "script": script.run}
_REQUEST_BYTES, _REQUEST_FDS = 4096, 6
_LOOK_UP_MS = 500
# Imported before the first fork: a program finds them in memory. What needs no such help is left to be imported.
_COMMON_MODULES = (
    "array", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "hashlib", "heapq", "io", "itertools", "math", "operator", "random", "re", "statistics", "string",
    "typing",
)  # fmt: skip


def main(control_fd: int, paths: list[str]) -> NoReturn:
    """Isolate this process, say so or why not over the socket `control_fd`, and serve it.

    Args:
        control_fd: a SOCK_SEQPACKET socket to the host.
        paths: folders to show to programs, as /paths/0 and so on, and to put on their import path.
    """
    control = socket.socket(fileno=control_fd)
    try:
        for name in _COMMON_MODULES:
            __import__(name)
        os.environ.clear()
        proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        extra = {f"/paths/{number}": path for number, path in enumerate(paths)}
        _isolate(proc, extra)
        sys.path += extra
        for folder in (Path(os.__file__).parent, *map(Path, extra)):
            list(folder.iterdir())  # readable for whom the programs run as
    except OSError as error:
        control.send(json.dumps({"refused": linux.reason(error)}).encode())
        sys.exit(1)
    host = os.getppid()
    child = os.fork()
    if child == 0:
        linux.die_with_parent()
        _serve(control, proc)
    control.close()
    ended = select.poll()
    ended.register(os.pidfd_open(child), select.POLLIN)
    # Not PR_SET_PDEATHSIG: it would fire when the *thread* of the host that started this ends.
    while not ended.poll(_LOOK_UP_MS):
        if os.getppid() != host:
            os.kill(child, signal.SIGKILL)
    os._exit(0)


def _isolate(proc: int, extra: dict[str, str]) -> None:
    """Get into namespaces with the read-only root, as nobody where this process is root.

    Root builds the file system as itself, since homes that only root may enter can lie above the interpreter.
    """
    as_root = os.geteuid() == 0 and _own_mounts()
    if as_root:
        root.build(extra)
        with contextlib.suppress(OSError):  # a user namespace in which there is no nobody
            os.setgroups([])
            os.setresgid(job.NOBODY, job.NOBODY, job.NOBODY)
            os.setresuid(job.NOBODY, job.NOBODY, job.NOBODY)
        linux.prctl("dumpable", linux.PR_SET_DUMPABLE, 1)  # else /proc/self belongs to root
    outside = os.geteuid(), os.getegid()
    linux.unshare(job.ALL_NAMESPACES, "user, mount, pid, net, ipc, uts and cgroup namespaces")
    job.map_user(proc, 0, outside)
    if not as_root:
        root.build(extra)


def _own_mounts() -> bool:
    """Get a mount namespace without a user namespace; root of a container often may not."""
    try:
        linux.unshare(linux.CLONE_NEWNS, "mount namespace")
    except PermissionError:
        return False
    return True


def isolation() -> list[str]:
    """What holds a program here, in words for the record of a result."""
    names = [*job.NAMESPACES, "read-only root", "no capabilities", "no new privileges", "rlimits"]
    names += ["seccomp"] * seccomp.supported()
    names += [f"landlock {landlock.abi()}"] * bool(landlock.abi())
    return names


def _serve(control: socket.socket, proc: int) -> NoReturn:
    """Fork a supervisor for each request until the host closes its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors that have ended vanish by themselves
    control.send(json.dumps({"ready": isolation()}).encode())
    if seccomp.supported():
        for forks in (False, True):
            seccomp.program(os.uname().machine, forks=forks)
    gc.collect()
    gc.freeze()  # a collection in a run would write to, and so copy, every page that it shares with this process
    while True:
        body, fds, _, _ = socket.recv_fds(control, _REQUEST_BYTES, _REQUEST_FDS)
        if not body:
            os._exit(0)
        try:
            child = os.fork()
        except OSError as error:  # no more processes: this run is refused, others go on
            wire.write_frame(fds[0], {"refused": f"fork: {error.strerror}"})
        else:
            if child == 0:
                _run(json.loads(body), list(fds), control, proc)
        for fd in fds:
            os.close(fd)


def _run(request: dict[str, Any], fds: list[int], control: socket.socket, proc: int) -> NoReturn:
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        job.supervise(request, fds, proc, _SIDES[request["side"]])
    finally:
        os._exit(0)
