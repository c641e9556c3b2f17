"""A score for a text: one number from the hidden state of its last token, in a file beside the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from llmctl.config.errors import InputError, IntegrityError
from llmctl.model import huggingface
from llmctl.model.transformer import Transformer
from llmctl.store.files import publish_bytes

HEAD: Final = "score"
WEIGHT: Final = "score.weight"
FILE: Final = "score.safetensors"


def add_head(model: Transformer, weight: Tensor | None = None) -> None:
    """Give the model a head [1,D] called `score`: `weight`, or zeros, by which every text is worth the same."""
    head = nn.Linear(model.config.width, 1, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.zeros_like(head.weight) if weight is None else weight)
    model.add_module(HEAD, head.to(model.device, model.dtype))


def scores(model: Transformer, hidden: Tensor) -> Tensor:
    """[…,D] to […], in fp32."""
    made: Tensor = model.get_submodule(HEAD)(hidden)
    return made.squeeze(-1).float()


def save_head(directory: Path, weight: Tensor) -> None:
    """Write `score.safetensors`, with the one tensor `score.weight`."""
    from safetensors.torch import save

    publish_bytes(directory / FILE, save({WEIGHT: weight.contiguous()}, {"format": "pt"}))


def load(directory: Path, *, dtype: torch.dtype | None = None) -> Transformer:
    """Open a checkpoint that `llmctl reward` made, with its head.

    Raises:
        InputError: it has no head.
        IntegrityError: the head is damaged, or of another width.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = directory / FILE
    if not path.is_file():
        raise InputError(f"{directory} has no {FILE}: it gives no scores", hint="llmctl reward makes such checkpoints")
    try:
        weight = load_file(path)[WEIGHT]
    except (OSError, SafetensorError, KeyError) as error:
        raise IntegrityError(f"cannot read {path}: {error}", hint="copy the checkpoint again") from None
    model = huggingface.load(directory, dtype=dtype)
    if weight.shape != (1, model.config.width):
        raise IntegrityError(
            f"{path}: a head of {tuple(weight.shape)} for a width of {model.config.width}",
            hint="copy the checkpoint again",
        )
    add_head(model, weight)
    return model
