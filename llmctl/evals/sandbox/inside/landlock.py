"""Landlock: a second lock on what the mounts, the network namespace and the filter already close.

Numbers are those of linux/landlock.h; what a kernel does not know of (its ABI is older) is left out.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct

from llmctl.evals.sandbox.inside import linux

_CREATE, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_PATH_BENEATH = 1
_WRITE_FILE, _READ_FILE, _READ_DIR, _MAKE_CHAR, _MAKE_BLOCK = 1 << 1, 1 << 2, 1 << 3, 1 << 6, 1 << 11
_EXECUTE = 1 << 0
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}  # by ABI: all rights of it
_TCP = 0b11  # bind, connect; from ABI 4
_SCOPES = 0b11  # abstract sockets, signals; from ABI 6
_NET_ABI, _SCOPE_ABI = 4, 6


@functools.cache
def abi() -> int:
    """The version of Landlock that the kernel offers; 0 where it has none or it is switched off."""
    call = linux.libc.syscall
    return max(0, int(call(ctypes.c_long(_CREATE), None, ctypes.c_size_t(0), ctypes.c_uint(_ASK_VERSION))))


def restrict(scratch: str) -> None:
    """Reading everywhere, writing below `scratch` and to devices, nothing executed, no TCP, no signal outwards.

    Without Landlock this does nothing; what it closes is then closed once instead of twice.
    """
    version = abi()
    if not version:
        return
    files = _FILE_RIGHTS[max(known for known in _FILE_RIGHTS if known <= version)]
    attributes = struct.pack("=Q", files)
    if version >= _NET_ABI:
        attributes += struct.pack("=Q", _TCP)
    if version >= _SCOPE_ABI:
        attributes += struct.pack("=Q", _SCOPES)
    rules = linux.checked("landlock_create_ruleset", _call(_CREATE, attributes, len(attributes), 0))
    try:
        _allow(rules, "/", _READ_FILE | _READ_DIR)
        _allow(rules, "/dev", _READ_FILE | _READ_DIR | _WRITE_FILE)
        _allow(rules, scratch, files & ~(_EXECUTE | _MAKE_CHAR | _MAKE_BLOCK))
        linux.checked("landlock_restrict_self", _call(_RESTRICT_SELF, rules, 0))
    finally:
        os.close(rules)


def _call(number: int, *arguments: int | bytes) -> int:
    given = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return int(linux.libc.syscall(ctypes.c_long(number), *given))


def _allow(rules: int, path: str, rights: int) -> None:
    folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", rights, folder)
        linux.checked(f"landlock_add_rule({path})", _call(_ADD_RULE, rules, _PATH_BENEATH, rule, 0))
    finally:
        os.close(folder)
