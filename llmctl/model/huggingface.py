"""A checkpoint as a Hugging Face directory, in the layout of the first family that expresses its shape."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmctl.config.errors import IntegrityError
from llmctl.config.model import ModelConfig
from llmctl.model.config_json import (
    CONFIG_FILE,
    GENERATION_FILE,
    Described,
    config_json,
    generation_json,
    read_config,
)
from llmctl.model.families import Family, family_for
from llmctl.model.families.links import our_shapes, their_shapes
from llmctl.model.families.llama import HEAD
from llmctl.model.formats.safetensors_reader import SafetensorsFolder
from llmctl.model.formats.safetensors_writer import SHARD_BYTES, Planned, write_folder
from llmctl.model.transformer import Transformer, outline
from llmctl.model.weights import HeldWeights, Maker, StoredWeights, Weights, common_dtype
from llmctl.store.files import publish_bytes
from llmctl.tokens.tokenizer import TOKENIZER_FILES, Tokenizer

EMBEDDING = "embed_tokens.weight"
LLAMA_IDS = {"bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True)
class Opened:
    """A checkpoint whose promises were checked, and whose weights are still to be read."""

    described: Described
    weights: StoredWeights

    @property
    def left_out(self) -> list[str]:
        """Tensors of the folder that the model does not need."""
        used = {theirs for link in self.weights.links.values() for theirs in link.theirs}
        return sorted(self.weights.source.stored.keys() - used - {HEAD})


def save(model: Transformer, directory: Path, tokenizer_directory: Path | None) -> Family:
    """Write a checkpoint; equal weights give equal bytes.

    Args:
        model: its parameters are saved in the dtype that they have.
        directory: made if it is not there; each file appears whole or not at all.
        tokenizer_directory: whose tokenizer files are copied. With None the ids of BOS and EOS are Llama's, 1 and 2.

    Returns:
        The family whose layout it has; our own where no other expresses the shape.
    """
    ids: dict[str, Any] = {**LLAMA_IDS, "eos_token_id": [2]}
    told = {"eos_token_id": 2}
    if tokenizer_directory is not None:
        tokenizer = Tokenizer.open(tokenizer_directory)
        ids = {
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": list(tokenizer.stop_ids),
            "pad_token_id": tokenizer.pad_id,
        }
        told = {"eos_token_id": tokenizer.eos_id}
        for name in TOKENIZER_FILES:
            source = tokenizer_directory / name
            if source.is_file():
                publish_bytes(directory / name, source.read_bytes())
    generation = generation_json(ids, model.config.context)
    weights = HeldWeights(model.state_dict())
    return write(directory, model.config, model.vocab_size, weights, ids={**ids, **told}, generation=generation)


def write(
    directory: Path,
    config: ModelConfig,
    vocab_size: int,
    weights: Weights,
    *,
    ids: Mapping[str, Any],
    generation: Mapping[str, Any],
    preferred: Family | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    wrote: Callable[[int], None] = lambda _: None,
) -> Family:
    """Write configuration and weights, reading one parameter at a time.

    Args:
        directory: made if it is not there.
        config: the shape.
        vocab_size: rows of the embedding.
        weights: where they come from.
        ids: of special tokens, for `config.json`.
        generation: content of `generation_config.json`.
        preferred: whose layout to take if it expresses the shape.
        dtype: what the weights are rounded to; None keeps each as it is.
        shard_bytes: most bytes of a file.
        wrote: told the bytes of weights written so far.

    Returns:
        The family whose layout was taken.
    """
    family, plain = family_for(config, preferred)
    ours = our_shapes(plain, vocab_size)  # without what training alone needs, where the layout has no place for it
    links = family.links(plain, ours)
    kinds = {theirs: dtype or weights.dtype(link.ours[0]) for link in links for theirs in link.theirs}
    shapes = their_shapes(links, ours)
    planned = {name: Planned(kinds[name], tuple(shapes[name])) for name in shapes}
    directory.mkdir(parents=True, exist_ok=True)
    described = config_json(family, plain, vocab_size, dtype or common_dtype(weights), ids)
    _publish_json(directory / CONFIG_FILE, described)
    _publish_json(directory / GENERATION_FILE, generation)
    write_folder(directory, planned, Maker(weights, links), shard_bytes=shard_bytes, wrote=wrote)
    return family


def open_weights(directory: Path) -> Opened:
    """Read the configuration and check every promise of the files, without reading a weight.

    No code from the directory runs: the configuration is data, and safetensors holds nothing but numbers.

    Raises:
        InputError: a file is missing, the weights are pickles, or it describes a model that is not known here.
        IntegrityError: the weights are damaged or do not fit the configuration; the tensor is named.
    """
    described = read_config(directory / CONFIG_FILE)
    folder = SafetensorsFolder.open(directory)
    shapes = our_shapes(described.config, described.vocab_size)
    links = described.family.links(described.config, shapes)
    idle = described.family.idle(described.config)
    head_too = HEAD not in shapes and HEAD in folder.stored
    if head_too:
        idle = _or(idle, HEAD)
    weights = StoredWeights.open(folder, links, shapes, idle, CONFIG_FILE)
    if head_too:
        _check_tied(folder, weights)
    return Opened(described, weights)


def load(directory: Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Transformer:
    """Open a checkpoint. The weights are mapped from the file, not read, where layout, dtype and device allow.

    Args:
        directory: holds config.json and the weights.
        dtype: what to convert the weights to; None keeps that of the embedding.
        device: where to put them.

    Raises:
        LlmctlError: as `open_weights`; a tensor holds NaN.
    """
    opened = open_weights(directory)
    model = outline(opened.described.config, opened.described.vocab_size)
    target = dtype or opened.weights.dtype(EMBEDDING)
    tensors = {}
    for name in opened.weights.links:
        tensors[name] = opened.weights.tensor(name).to(device=device, dtype=target).contiguous()
    model.load_state_dict(tensors, assign=True)
    return model


def _or(pattern: Any, name: str) -> Any:
    import re

    return re.compile(f"(?:{pattern.pattern})|{re.escape(name)}")


def _check_tied(folder: SafetensorsFolder, weights: StoredWeights) -> None:
    """A tied model may carry its output matrix too, if it is the embedding."""
    head, embedding = folder.tensor(HEAD), weights.tensor(EMBEDDING)
    if head.shape != embedding.shape or not torch.equal(head, embedding):
        raise IntegrityError(
            f"{folder.file_of(HEAD)}: {HEAD} differs from the embedding, but {CONFIG_FILE} ties them",
            hint="set tie_word_embeddings to false",
        )


def _publish_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON as transformers does: sorted, two spaces."""
    publish_bytes(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
