"""A model in a GGUF file: opened under our names, and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmctl.config.blocks import Llama3Scaling
from llmctl.config.errors import InputError, IntegrityError, UsageError
from llmctl.config.model import ModelConfig
from llmctl.model.families.family import canonical
from llmctl.model.families.gguf_kin import KIN, faults, kin_for, kin_named
from llmctl.model.families.gguf_names import EMBEDDING, IDLE, ROPE_FACTORS
from llmctl.model.families.links import our_shapes, their_shapes
from llmctl.model.formats.gguf_reader import GgufFile
from llmctl.model.formats.gguf_writer import Format, write_gguf
from llmctl.model.positions import rotary_frequencies
from llmctl.model.weights import Maker, StoredWeights, Weights

PUBLISHED_CONTEXT = 8192  # before the scaling, of every Llama 3 that was published
ARCHITECTURE_KEY = "general.architecture"


@dataclass(frozen=True)
class OpenedGguf:
    """A file whose promises were checked, and whose weights are still to be read."""

    file: GgufFile
    config: ModelConfig
    vocab_size: int
    weights: StoredWeights


def open_gguf(path: Path) -> OpenedGguf:
    """Read the header and check that the file holds exactly the tensors that its model needs.

    Raises:
        InputError: the file is missing, no GGUF, or of an architecture or encoding that is not known here.
        IntegrityError: it is damaged or contradicts itself; the field or tensor is named.
    """
    file = GgufFile.open(path)
    kin = kin_named(str(path), file.metadata.get(ARCHITECTURE_KEY))
    if EMBEDDING not in file.stored or len(file.stored[EMBEDDING].shape) != 2:
        raise IntegrityError(f"{path} lacks the matrix {EMBEDDING}", hint="copy or download the file again")
    try:
        config = kin.read(file.metadata, file.stored.keys(), _llama3(file))
        _check_factors(file, config)
    except ValueError as error:
        raise InputError(
            f"{path}: {faults(error)}", hint=f"a {kin.architecture} with these metadata is not computed here"
        ) from None
    vocab_size = file.stored[EMBEDDING].shape[0]
    shapes = our_shapes(config, vocab_size)
    weights = StoredWeights.open(file, kin.links(config, shapes), shapes, IDLE, "its metadata")
    return OpenedGguf(file, config, vocab_size, weights)


def _llama3(file: GgufFile) -> Llama3Scaling | None:
    """The scaling of Llama 3, which a GGUF keeps as what each frequency is divided by.

    Raises:
        ValueError: the factors are not those of a published Llama 3.
    """
    if ROPE_FACTORS not in file.stored:
        return None
    divisors = file.tensor(ROPE_FACTORS).float()
    scaling = Llama3Scaling(factor=round(divisors.max().item(), 4), original_context=PUBLISHED_CONTEXT)
    base = float(file.metadata.get(f"{file.metadata[ARCHITECTURE_KEY]}.rope.freq_base", 10_000.0))
    if not torch.allclose(_divisors(2 * divisors.numel(), base, scaling), divisors, rtol=1e-4):
        raise ValueError(f"{ROPE_FACTORS} is not the scaling of Llama 3 from a context of {PUBLISHED_CONTEXT}")
    return scaling


def _check_factors(file: GgufFile, config: ModelConfig) -> None:
    """One factor for each pair that is turned; a `ValueError` where it is not so."""
    if ROPE_FACTORS in file.stored and file.stored[ROPE_FACTORS].shape != (config.head_width // 2,):
        count = file.stored[ROPE_FACTORS].shape[0]
        raise ValueError(f"{ROPE_FACTORS} has {count} factors for heads of {config.head_width}")


def _divisors(width: int, base: float, scaling: Llama3Scaling) -> Tensor:
    """What each frequency is divided by: float32 [width / 2]."""
    return rotary_frequencies(width, base, None)[0] / rotary_frequencies(width, base, scaling)[0]


def write(
    path: Path,
    config: ModelConfig,
    vocab_size: int,
    weights: Weights,
    metadata: Mapping[str, Any],
    *,
    wanted: Format,
    wrote: Callable[[int], None] = lambda _: None,
) -> str:
    """Write a file that llama.cpp opens, reading one parameter at a time.

    Args:
        path: where to.
        config: the shape.
        vocab_size: rows of the embedding.
        weights: where they come from.
        metadata: of the tokenizer and of whatever else is worth saying.
        wanted: how matrices are kept.
        wrote: told the bytes of weights written so far.

    Returns:
        llama.cpp's name of the architecture.

    Raises:
        UsageError: llama.cpp has no architecture for the shape; nothing is written.
    """
    plain = canonical(config)
    kin = kin_for(plain)
    if kin is None:
        raise UsageError(
            "no architecture of llama.cpp that is known here expresses this model",
            hint=f"known: {', '.join(KIN)}, without windows; export it with --format hf",
        )
    ours = our_shapes(plain, vocab_size)
    links = kin.links(plain, ours)
    shapes = {name: tuple(shape) for name, shape in their_shapes(links, ours).items()}
    make = Maker(weights, links)
    scaling, extra = plain.rope_scaling, {}
    if isinstance(scaling, Llama3Scaling):
        extra[ROPE_FACTORS] = _divisors(plain.head_width, plain.rope_base, scaling)
        if scaling.original_context != PUBLISHED_CONTEXT:
            raise UsageError(
                f"a GGUF cannot say that the context was {scaling.original_context} before its scaling",
                hint="export it with --format hf",
            )
    facts = {**kin.describe(plain), f"{kin.architecture}.vocab_size": vocab_size, **metadata}
    shapes |= {name: tuple(tensor.shape) for name, tensor in extra.items()}

    def tensor(name: str) -> Tensor:
        return extra[name] if name in extra else make(name)

    write_gguf(path, kin.architecture, facts, shapes, tensor, wanted=wanted, wrote=wrote)
    return kin.architecture
