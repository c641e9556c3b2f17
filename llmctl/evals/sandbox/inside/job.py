"""One run: a supervisor outside the new namespaces, and the program as the first process inside them.

The program is process 1 of its process namespace: the moment it ends or is killed, the kernel kills everything that
it has started, whatever that has done to detach itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import resource
import select
import signal
from collections.abc import Callable
from typing import Any, NoReturn

from llmctl.evals.sandbox.inside import landlock, linux, root, seccomp, wire

NAMESPACES = {
    "user": linux.CLONE_NEWUSER,
    "mount": linux.CLONE_NEWNS,
    "pid": linux.CLONE_NEWPID,
    "net": linux.CLONE_NEWNET,
    "ipc": linux.CLONE_NEWIPC,
    "uts": linux.CLONE_NEWUTS,
    "cgroup": linux.CLONE_NEWCGROUP,
}
ALL_NAMESPACES = sum(NAMESPACES.values())
NOBODY = 65534
_TROUBLE_BYTES = 300
STDERR, CHANNEL, LINK = 2, 3, 4  # to the user, to the host, to the other process of a check

Side = Callable[[Any], int]  # what the host sends first -> the exit code


def supervise(request: dict[str, Any], fds: list[int], proc: int, side: Side) -> None:
    """Run `side` in namespaces of its own and tell the host how it ended.

    Args:
        request: its `limits`, and the names of `fds`.
        fds: `leash` (its end means: kill; the report goes there), `channel`, and where needed `link` and `stdin`,
            `stdout`, `stderr`.
        proc: /proc of a process namespace that this process belongs to.
        side: what runs inside, given what the host sends first over `channel`.
    """
    linux.die_with_parent()
    named = dict(zip(request["fds"], fds, strict=True))
    limits = request["limits"]
    try:
        outside = os.geteuid(), os.getegid()
        linux.unshare(ALL_NAMESPACES, "all namespaces")
        map_user(proc, NOBODY, outside)
        root.mount_scratch(limits["scratch_bytes"], limits["scratch_files"])
        trouble_end, named["trouble"] = os.pipe()
        child = os.fork()
    except OSError as error:
        wire.write_frame(named["leash"], {"refused": linux.reason(error)})
        return
    if child == 0:
        _inside(named, limits, side)
    for name, fd in named.items():
        if name != "leash":
            os.close(fd)
    # Where the program could not be restricted it did not run, whatever its exit code seems to say.
    if trouble := os.read(trouble_end, _TROUBLE_BYTES):
        wire.write_frame(named["leash"], {"refused": trouble.decode(errors="replace")})
        return
    ended = _wait(child, named["leash"], limits["timeout_s"])
    os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    report = {
        "exit": os.waitstatus_to_exitcode(status),
        "ended": ended,
        "cpu_s": used.ru_utime + used.ru_stime,
    }
    with contextlib.suppress(OSError):  # the host is gone
        wire.write_frame(named["leash"], report)


def map_user(proc: int, inside: int, outside: tuple[int, int]) -> None:
    """Let this process be the user and group `inside` in its new user namespace, where no other exists.

    Args:
        proc: /proc of a process namespace that this process belongs to.
        inside: the number there of both.
        outside: user and group in the namespace above.
    """
    uid, gid = outside
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside} {uid} 1"),
        ("gid_map", f"{inside} {gid} 1"),
    ):
        fd = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def _wait(child: int, leash: int, timeout_s: float) -> str:
    """Wait until the program ends by itself, the host lets go ("stopped") or the time is over; tell which."""
    pidfd = os.pidfd_open(child)
    waiting = select.poll()
    for fd in (pidfd, leash):
        waiting.register(fd, select.POLLIN)
    ready = [fd for fd, _ in waiting.poll(timeout_s * 1000)]
    if not ready:
        return "timeout"
    return "itself" if pidfd in ready else "stopped"


def _inside(named: dict[str, int], limits: dict[str, Any], side: Side) -> NoReturn:
    """Become the restricted process and run `side`; whatever happens, it ends here."""
    code = 1
    trouble = named["trouble"]
    try:
        try:
            trouble = _arrange(named)
            _restrict(limits)
        except Exception as error:  # noqa: BLE001 (whatever it is, the program must not run)
            os.write(trouble, linux.reason(error).encode()[:_TROUBLE_BYTES])
        else:
            os.close(trouble)
            code = side(wire.read_frame(CHANNEL))
    finally:
        os._exit(code)


def _restrict(limits: dict[str, Any]) -> None:
    """Everything that holds this process, the namespaces aside."""
    linux.die_with_parent()
    os.setsid()  # kill(0, ...) would reach the process group of the host
    os.chdir(root.SCRATCH)
    os.umask(0o077)
    _limit(limits)
    linux.drop_capabilities()
    linux.prctl("dumpable", linux.PR_SET_DUMPABLE, 0)
    landlock.restrict(root.SCRATCH)
    if seccomp.supported():
        seccomp.install(seccomp.program(os.uname().machine, forks=limits["processes"] > 1))


def _arrange(named: dict[str, int]) -> int:
    """Give every descriptor its fixed number and close all others; the number of the one for trouble."""
    null = os.open("/dev/null", os.O_RDWR)
    places = ("stdin", "stdout", "stderr", "channel", "link", "trouble")
    high = [fcntl.fcntl(named.get(name, null), fcntl.F_DUPFD, 16) for name in places]
    for place, fd in enumerate(high):
        os.dup2(fd, place, inheritable=place <= STDERR)
    os.closerange(len(places), os.sysconf("SC_OPEN_MAX"))
    return places.index("trouble")


def _limit(limits: dict[str, Any]) -> None:
    """The limits of the kernel, which count for each process."""
    seconds = math.ceil(limits["timeout_s"]) + 1
    for what, wanted in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, limits["scratch_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_NPROC, max(limits["threads"], limits["processes"]) + 1),  # the supervisor is one
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        _, most = resource.getrlimit(what)
        value = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(what, (value, value))
