"""The system calls that Python 3.11 has no function for, through the C library.

Everything in this folder runs in the sandbox's own processes and imports nothing but the standard library.
Numbers and structures are those of linux/{mount,sched,prctl,capability}.h.
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000
CLONE_THREAD = 0x0001_0000

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x4_0000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_SYS_MOUNT_SETATTR = 442  # the same on every architecture, as all numbers from 424 on

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 1, 4, 24, 38, 22
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x2008_0522
_CAPABILITIES = 64  # more than any kernel has; the first unknown one ends the loop

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def checked(what: str, result: int) -> int:
    """`result` of a call of the C library.

    Raises:
        OSError: it is negative; the message names the call.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def reason(error: Exception) -> str:
    """An error of the system in one line, without its number."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.strerror}: {error.filename}" if error.filename else error.strerror


def unshare(flags: int, what: str) -> None:
    """Leave the namespaces that `flags` name; `what` says in words which, for the message of a refusal."""
    checked(f"unshare({what})", libc.unshare(flags))


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mount a file system, or with MS_BIND show one at a second place."""
    given = [text.encode() or None for text in (source, target, kind)]
    checked(f"mount {kind or source} on {target}", libc.mount(*given, ctypes.c_ulong(flags), data.encode() or None))


class _MountAttributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


def restrict_mount(path: str, attributes: int, *, recursive: bool) -> None:
    """Add `attributes` (MOUNT_ATTR_*) to the mount at `path`, and to those below it where `recursive`."""
    wanted = _MountAttributes(attr_set=attributes)
    result = libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        path.encode(),
        ctypes.c_uint(_AT_RECURSIVE if recursive else 0),
        ctypes.byref(wanted),
        ctypes.c_size_t(ctypes.sizeof(wanted)),
    )
    checked(f"mount_setattr({path})", result)


def pivot_root(new: str, old: str) -> None:
    """Make `new` this mount namespace's root and put the old one at `old`."""
    checked("pivot_root", libc.pivot_root(new.encode(), old.encode()))


def detach(path: str) -> None:
    """Unmount what is at `path`, at once for every new access."""
    checked(f"umount {path}", libc.umount2(path.encode(), _MNT_DETACH))


def prctl(what: str, option: int, *arguments: int) -> int:
    """Set one of this process's properties; `what` names it for the message of an error."""
    padded = (*arguments, 0, 0, 0, 0)[:4]
    return checked(f"prctl({what})", libc.prctl(option, *(ctypes.c_ulong(value) for value in padded)))


def die_with_parent() -> None:
    """Let the kernel kill this process as soon as the thread that made it ends."""
    prctl("pdeathsig", PR_SET_PDEATHSIG, 9)


def drop_capabilities() -> None:
    """Give up every capability, and the way to get one back."""
    prctl("ambient", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(_CAPABILITIES):
        try:
            prctl("capbset", PR_CAPBSET_DROP, capability)
        except OSError:
            break
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    checked("capset", libc.capset(header, nothing))
    prctl("no_new_privs", PR_SET_NO_NEW_PRIVS, 1)
