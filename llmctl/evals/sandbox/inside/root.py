"""The file system that a program sees: Python's library and the system's shared libraries, read-only, and nothing else.

There is no /proc, no /etc, no home, no program to execute; /tmp is an empty file system of its own for every run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from llmctl.evals.sandbox.inside import linux

SCRATCH = "/tmp"  # noqa: S108 (inside the new root)
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_READ_ONLY = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID


def visible(extra: Mapping[str, str]) -> list[tuple[str, str]]:
    """What is shown of the file system: pairs of the path inside and the real one, outer folders first.

    Args:
        extra: real folders by the path inside, beside the standard ones.

    Raises:
        OSError: the interpreter lies where a run has its scratch.
    """
    found = {inside: os.path.realpath(real) for inside, real in extra.items()}
    for path in filter(os.path.isdir, (*_LIBRARIES, *sys.path)):
        real = os.path.realpath(path)
        found |= {path: real, real: real}
        if Path(SCRATCH) in (*Path(path).parents, *Path(real).parents):
            raise OSError(f"Python's library lies under {SCRATCH}, where a program has its scratch: {path}")
    return [(inside, real) for inside, real in sorted(found.items()) if not _within(inside, real, found)]


def _within(inside: str, real: str, found: dict[str, str]) -> bool:
    """Whether a shown folder above `inside` shows the same already."""
    return any(
        str(above) in found and os.path.realpath(found[str(above)] + inside[len(str(above)) :]) == real
        for above in Path(inside).parents
    )


def build(extra: Mapping[str, str]) -> None:
    """Replace this process's root, in a mount namespace of its own, by the read-only one.

    Args:
        extra: folders to show beside the standard ones, by the path inside.
    """
    shown = visible(extra)
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    # Two turns: the first keeps the old root at /old, so that what lies under /tmp can be shown as well.
    linux.mount("tmpfs", SCRATCH, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0755")
    for name in ("old", "new"):
        Path(SCRATCH, name).mkdir()
    linux.pivot_root(SCRATCH, f"{SCRATCH}/old")
    os.chdir("/")
    linux.mount("tmpfs", "/new", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0755,size=1m")
    for inside, outside in _targets(shown):
        linux.mount(outside, inside, "", linux.MS_BIND | linux.MS_REC)
        linux.restrict_mount(inside, _READ_ONLY | linux.MOUNT_ATTR_NODEV, recursive=True)
    for name in _DEVICES:
        _show_device(name)
    Path("/new", SCRATCH[1:]).mkdir(exist_ok=True)
    linux.restrict_mount("/new", _READ_ONLY, recursive=False)
    os.chdir("/new")
    linux.pivot_root(".", ".")
    linux.detach(".")  # the old root lies above the new one now
    os.chdir("/")


def _targets(shown: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for inside, real in shown:
        target = Path("/new", inside[1:])
        target.mkdir(parents=True, exist_ok=True)
        yield str(target), f"/old{real}"


def _show_device(name: str) -> None:
    target = Path("/new/dev", name)
    target.parent.mkdir(exist_ok=True)
    target.touch()
    linux.mount(f"/old/dev/{name}", str(target), "", linux.MS_BIND)
    linux.restrict_mount(str(target), _READ_ONLY | linux.MOUNT_ATTR_NOEXEC, recursive=False)


def mount_scratch(size_bytes: int, files: int) -> None:
    """An empty /tmp for one run: in memory, of bounded size and number of files, nothing in it can be executed."""
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("tmpfs", SCRATCH, "tmpfs", flags, f"mode=0700,size={size_bytes},nr_inodes={files}")
