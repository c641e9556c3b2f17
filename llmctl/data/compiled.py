"""Where the compiled kernels lie, and what is said where they were not built."""

from __future__ import annotations

import ctypes
import functools
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from llmctl.config.errors import LlmctlError


@functools.cache
def library(beside: str, name: str) -> ctypes.CDLL:
    """The compiled form of `name`.c beside a module.

    Args:
        beside: the module's `__file__`.
        name: the source's, without its ending.

    Raises:
        LlmctlError: where it was not built, which `pip install` does.
    """
    source = Path(beside).with_name(f"{name}.c")
    for suffix in EXTENSION_SUFFIXES:
        path = source.with_name(f"_{name}{suffix}")
        if path.exists():
            return ctypes.CDLL(str(path))
    raise LlmctlError(
        f"llmctl's compiled kernel ({'/'.join(source.parts[-4:])}) was not built",
        hint="install a C compiler (apt install g++), then run pip install again in llmctl's directory",
    )
