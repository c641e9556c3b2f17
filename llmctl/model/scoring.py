"""A score for a text: one number from the hidden state of its last token, in a file beside the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from llmctl.config.errors import InputError, IntegrityError
from llmctl.model import huggingface
from llmctl.model.attention import packed
from llmctl.model.transformer import Transformer
from llmctl.store.artifact import Artifact
from llmctl.store.files import publish_bytes
from llmctl.tokens.batch import padded_groups

HEAD: Final = "score"
WEIGHT: Final = "score.weight"
FILE: Final = "score.safetensors"
BATCH_TOKENS = 8192  # of one forward pass of `last_scores`


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


@torch.inference_mode()
def last_scores(model: Transformer, rows: Sequence[Sequence[int]]) -> list[float]:
    """The score of each text, read at its last token."""
    device, found = model.device, dict[int, float]()
    for group in padded_groups(list(map(len, rows)), BATCH_TOKENS):
        some = [rows[at] for at in group]
        longest = max(map(len, some))
        tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in some], device=device)
        documents = torch.tensor([[0] * len(row) + [-1] * (longest - len(row)) for row in some], device=device)
        positions = torch.arange(longest, device=device).expand_as(tokens)
        hidden = model(tokens, positions, packed(documents))  # [B,T,D]
        ends = torch.tensor([len(row) - 1 for row in some], device=device)
        values = scores(model, hidden[torch.arange(len(some), device=device), ends]).tolist()
        found.update(zip(group, values, strict=True))
    return [found[at] for at in range(len(rows))]


def save_head(directory: Path, weight: Tensor) -> None:
    """Write `score.safetensors`, with the one tensor `score.weight`."""
    from safetensors.torch import save

    publish_bytes(directory / FILE, save({WEIGHT: weight.contiguous()}, {"format": "pt"}))


def require_whole(given: Artifact) -> None:
    """Refuse a checkpoint whose scores are of something else than whole answers.

    Raises:
        InputError: so they are.
    """
    if (head := given.manifest.semantic.get("head", HEAD)) != HEAD:
        raise InputError(
            f"{given.ref} scores {head}, not whole answers", hint="train one with llmctl reward --preferences"
        )


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
