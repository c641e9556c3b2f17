"""The filter on system calls: what a program that computes has no use for is refused.

No program is executed, no socket opened, no namespace, mount, key or kernel object made; without leave for more
processes none is forked. Memory that no limit counts (memfd, System V) cannot be had. Calls that came after this
table was written do not exist (ENOSYS), so that a new kernel does not widen it. Numbers are those of asm/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct

from llmctl.evals.sandbox.inside import linux

_NEWEST = 450  # set_mempolicy_home_node, Linux 5.17: later numbers are refused
_COMMON = {  # the same number everywhere
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "pidfd_open": 434, "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443,
    "memfd_secret": 447, "process_mrelease": 448, "set_mempolicy_home_node": 450,
}  # fmt: skip
_X86_64 = {
    "execve": 59, "execveat": 322, "socket": 41, "memfd_create": 319, "shmget": 29, "msgget": 68, "semget": 64,
    "mq_open": 240, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "mount": 165,
    "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308, "add_key": 248,
    "request_key": 249, "keyctl": 250, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "kexec_load": 246,
    "kexec_file_load": 320, "init_module": 175, "finit_module": 313, "delete_module": 176,
    "open_by_handle_at": 304, "name_to_handle_at": 303, "quotactl": 179, "acct": 163, "swapon": 167, "swapoff": 168,
    "reboot": 169, "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173, "modify_ldt": 154,
    "syslog": 103, "settimeofday": 164, "clock_settime": 227, "adjtimex": 159, "clock_adjtime": 305,
    "lookup_dcookie": 212, "personality": 135, "vhangup": 153, "migrate_pages": 256, "move_pages": 279,
    "mbind": 237, "set_mempolicy": 238, "fanotify_init": 300, "vmsplice": 278,
}  # fmt: skip
_AARCH64 = {
    "execve": 221, "execveat": 281, "socket": 198, "memfd_create": 279, "shmget": 194, "msgget": 186, "semget": 190,
    "mq_open": 180, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "mount": 40,
    "umount2": 39, "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268, "add_key": 217, "request_key": 218,
    "keyctl": 219, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "kexec_load": 104, "kexec_file_load": 294,
    "init_module": 105, "finit_module": 273, "delete_module": 106, "open_by_handle_at": 265,
    "name_to_handle_at": 264, "quotactl": 60, "acct": 89, "swapon": 224, "swapoff": 225, "reboot": 142,
    "sethostname": 161, "setdomainname": 162, "syslog": 116, "settimeofday": 170, "clock_settime": 112,
    "adjtimex": 171, "clock_adjtime": 266, "lookup_dcookie": 18, "personality": 92, "vhangup": 58,
    "migrate_pages": 238, "move_pages": 239, "mbind": 235, "set_mempolicy": 237, "fanotify_init": 262,
    "vmsplice": 75,
}  # fmt: skip
# By machine: the AUDIT_ARCH value, the numbers refused, clone's number, fork's and vfork's.
_MACHINES: dict[str, tuple[int, dict[str, int], int, tuple[int, ...]]] = {
    "x86_64": (0xC000003E, _X86_64, 56, (57, 58)),
    "aarch64": (0xC00000B7, _AARCH64, 220, ()),
}
_CLONE3 = 435
_NEW_NAMESPACES = 0x7E02_0000  # every CLONE_NEW* that clone takes

# Classic BPF (linux/filter.h) over struct seccomp_data: nr at 0, arch at 4, the low half of the first argument at 16.
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _KILL, _ERRNO = 0x7FFF_0000, 0x8000_0000, 0x0005_0000
_MODE_FILTER = 2


@functools.cache
def supported() -> bool:
    """Whether this machine's numbers are known and its kernel takes filters."""
    if os.uname().machine not in _MACHINES:
        return False
    return linux.libc.prctl(linux.PR_SET_SECCOMP, _MODE_FILTER, None) < 0 and ctypes.get_errno() == errno.EFAULT


@functools.cache  # made once, in the launcher
def program(machine: str, *, forks: bool) -> bytes:
    """The filter in the kernel's form; `forks` allows new processes, threads are always allowed."""
    arch, refused, clone, fork_calls = _MACHINES[machine]
    denied = _ERRNO | errno.EPERM
    absent = _ERRNO | errno.ENOSYS
    code = [
        *_unless(_ARCH, _EQUAL, arch, _KILL),
        *_when(_NUMBER, _GREATER, _NEWEST, absent),  # also the numbers of x32, which carry bit 30
        *_when(_NUMBER, _EQUAL, _CLONE3, absent),  # its flags lie in memory; the C library falls back to clone
    ]
    for number in sorted({*refused.values(), *_COMMON.values(), *(() if forks else fork_calls)}):
        code += _when(_NUMBER, _EQUAL, number, denied)
    flags = _when(_FIRST_ARGUMENT, _ANY_BIT, _NEW_NAMESPACES, denied)
    if not forks:
        flags += _unless(_FIRST_ARGUMENT, _ANY_BIT, linux.CLONE_THREAD, denied)
    code += [_step(_LOAD, _NUMBER), _step(_EQUAL, clone, 0, len(flags)), *flags, _step(_RETURN, _ALLOW)]
    return b"".join(code)


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def _when(field: int, test: int, value: int, result: int) -> list[bytes]:
    """Return `result` where the field passes the test."""
    return [_step(_LOAD, field), _step(test, value, 0, 1), _step(_RETURN, result)]


def _unless(field: int, test: int, value: int, result: int) -> list[bytes]:
    """Return `result` where the field fails the test."""
    return [_step(_LOAD, field), _step(test, value, 1, 0), _step(_RETURN, result)]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(code: bytes) -> None:
    """Put this process and all it makes under the filter, for good."""
    wanted = _Program(len(code) // 8, code)
    result = linux.libc.prctl(linux.PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), ctypes.byref(wanted))
    linux.checked("prctl(seccomp)", result)
