"""Optimizer state in files: whether DeepSpeed's asynchronous I/O, which ZeRO-Infinity reads them with, runs here.

(Rajbhandari et al. 2021, arXiv:2104.07857.) DeepSpeed compiles it when it is first used, against libaio.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from pathlib import Path

from llmctl.config.errors import InputError, UsageError

NAME = re.compile(r"llmctl-offload-(.+)-(\d+)")  # of a rank's folder: host and process
HINT = "install libaio's headers and a C++ compiler (Debian: apt install libaio-dev g++), or offload=cpu"


def require_files(folder: str, device_type: str) -> None:
    """Refuse `offload=nvme:FOLDER` where it cannot run, before any work.

    Raises:
        InputError: there is no such folder, or it cannot be written to.
        UsageError: DeepSpeed's asynchronous I/O cannot be built on this machine.
    """
    path = Path(folder)
    if not path.is_dir() or not os.access(path, os.W_OK):
        what = "cannot be written to" if path.is_dir() else "is no folder"
        raise InputError(f"offload=nvme: {folder} {what}", hint="name a folder on a local disk, made before")
    os.environ.setdefault("DS_ACCELERATOR", device_type)  # read when deepspeed is imported
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible():
        raise UsageError("offload=nvme: DeepSpeed's asynchronous I/O cannot be compiled here", hint=HINT)


_made: list[Path] = []  # by this process


def own_folder(folder: str) -> Path:
    """A new folder for this process's files, in `folder`; what killed processes of this machine left is removed.

    Runs may so share a folder: DeepSpeed names its files by rank and parameter alone.
    """
    host = socket.gethostname()
    for path in Path(folder).iterdir():
        found = NAME.fullmatch(path.name)
        if found and found[1] == host and not _alive(int(found[2])):
            shutil.rmtree(path, ignore_errors=True)
    own = Path(folder) / f"llmctl-offload-{host}-{os.getpid()}"
    own.mkdir()
    _made.append(own)
    return own


def clear() -> None:
    """Remove this process's folders, at its end."""
    while _made:
        shutil.rmtree(_made.pop(), ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
