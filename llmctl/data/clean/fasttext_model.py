"""fastText models: loaded once a process, asked for lists of texts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmctl.config.errors import InputError


@lru_cache(maxsize=4)
def load_model(path: Path) -> Any:
    """The fastText model in a file.

    Raises:
        InputError: where it is none, or of a version that fastText does not read.
    """
    import fasttext

    try:
        return fasttext.load_model(str(path))
    except ValueError as error:
        raise InputError(f"{path}: {error}", hint="give a model that fastText wrote") from None


def predict(model: Any, texts: Sequence[str], most_characters: int) -> tuple[list[str], npt.NDArray[np.float64]]:
    """(label without its prefix, probability) of every text's likeliest label; "" and 0 where it has none.

    Args:
        model: from `load_model`.
        texts: any texts; their line ends count as blanks.
        most_characters: of every text, as much from its start.
    """
    if not texts:
        return [], np.empty(0)
    lines = [one_line(text, most_characters) for text in texts]
    labels, scores = model.predict(lines, k=1)
    first = [found[0].removeprefix("__label__") if found else "" for found in labels]
    certain = np.array([found[0] if len(found) else 0.0 for found in scores], dtype=np.float64)
    return first, certain.clip(0.0, 1.0)


def one_line(text: str, most_characters: int) -> str:
    """The start of a text as fastText takes it: one line, words parted by single blanks."""
    return " ".join(text[:most_characters].replace("\0", " ").split())
