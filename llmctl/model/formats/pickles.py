"""Pickles are programs: whoever opens one runs what its maker wrote. None is opened here; the refusal says why."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from llmctl.config.errors import InputError

ENDINGS: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
CONVERT = "get the safetensors version of the model, or convert it where you trust its maker"
ZIP, PROTOCOL, NEWEST_PROTOCOL = b"PK\x03\x04", 0x80, 5


def refuse_pickle(path: Path, beginning: bytes) -> None:
    """Refuse a file whose first bytes are those of a pickle, or of a zip archive, which PyTorch keeps pickles in.

    Raises:
        InputError: with the reason.
    """
    pickled = len(beginning) > 1 and beginning[0] == PROTOCOL and 2 <= beginning[1] <= NEWEST_PROTOCOL
    # A safetensors header of 128 bytes begins with 0x80 too, but then zeros follow and the JSON's brace.
    if beginning.startswith(ZIP) or (pickled and beginning[2:8] != bytes(6)):
        raise InputError(f"{path} is a pickle (a PyTorch file): opening it would run the code in it", hint=CONVERT)


def refuse_pickles_among(directory: Path, names: Iterable[str]) -> None:
    """Refuse a folder whose weights are pickles.

    Raises:
        InputError: with the reason, where there is one.
    """
    found = sorted(name for name in names if name.endswith(ENDINGS))
    if found:
        raise InputError(
            f"{directory} keeps its weights in {found[0]}, a pickle: opening it would run the code in it", hint=CONVERT
        )
