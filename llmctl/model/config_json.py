"""`config.json` and `generation_config.json` of a checkpoint, whatever its family."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from llmctl.config.errors import InputError
from llmctl.config.model import ModelConfig
from llmctl.model.families import FAMILIES, OWN, Family
from llmctl.store.files import explained

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
LARGEST_CONFIG_BYTES = 1 << 20
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Described:
    """What a `config.json` says.

    Attributes:
        family: whose layout it is.
        config: the shape; its name is `custom`.
        vocab_size: rows of the embedding.
        content: all of it.
    """

    family: Family
    config: ModelConfig
    vocab_size: int
    content: Mapping[str, Any]

    @property
    def runs_code(self) -> bool:
        """Whether the checkpoint brings code of its own, which is never run."""
        return "auto_map" in self.content


def read_config(path: Path) -> Described:
    """Read `config.json`.

    Raises:
        InputError: the file is missing, not JSON, of an unknown architecture, or a field is missing or wrong.
    """
    content = read_object(path)
    family = _family(path, content)
    try:
        config, vocab_size = family.read(content)
    except ValidationError as error:
        raise _unfit(path, family, _faults(error)) from None
    except ValueError as error:
        raise _unfit(path, family, str(error)) from None
    return Described(family, config, vocab_size, content)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a small file.

    Raises:
        InputError: the file is missing, too large, or holds none.
    """
    with explained(str(path)):
        size = path.stat().st_size
        content = path.read_bytes() if size <= LARGEST_CONFIG_BYTES else None
    if content is None:
        raise InputError(f"{path} has {size} bytes, too many for a model's configuration", hint="check the file")
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}", hint="copy the checkpoint again") from None
    if not isinstance(parsed, dict):
        raise InputError(f"{path} holds no JSON object", hint="copy the checkpoint again")
    return parsed


def _family(path: Path, content: Mapping[str, Any]) -> Family:
    """By the architecture's name, or by `model_type` where there is none."""
    named = content.get("architectures")
    if isinstance(named, list) and len(named) == 1 and isinstance(named[0], str):
        if named[0] in FAMILIES:
            return FAMILIES[named[0]]
    elif named is None:
        by_type = {family.model_type: family for family in FAMILIES.values()}
        told = content.get("model_type")
        if isinstance(told, str) and told in by_type:
            return by_type[told]
        named = f"none, and model_type {told!r}"
    known = ", ".join(name for name, family in FAMILIES.items() if family is not OWN)
    raise InputError(f"{path}: architectures is {named}, which is not known here", hint=f"known: {known}")


def _unfit(path: Path, family: Family, faults: str) -> InputError:
    hint = f"a {family.model_type} with these fields is not computed here"
    if "quantization_config" in faults:
        hint = "get the version of the model that is not quantized, or its GGUF"
    return InputError(f"{path}: {faults}", hint=hint)


def _faults(error: ValidationError) -> str:
    """All faults on one line, each with its field."""
    faults = []
    for fault in error.errors():
        field = ".".join(str(part) for part in fault["loc"])
        faults.append(f"{field}: {fault['msg']}" if field else fault["msg"])
    return "; ".join(faults)


def config_json(
    family: Family, config: ModelConfig, vocab_size: int, dtype: torch.dtype, ids: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of `config.json`.

    What transformers 5 renamed stands under both names, so that its predecessors and vLLM find it too.

    Args:
        family: the layout.
        config: the shape, as `family_for` gave it.
        vocab_size: rows of the embedding.
        dtype: what most weights are saved in.
        ids: `bos_token_id`, `eos_token_id` and `pad_token_id`, as far as there are such.
    """
    type_name = str(dtype).removeprefix("torch.")
    return {
        "architectures": [family.architecture],
        "dtype": type_name,
        "model_type": family.model_type,
        "torch_dtype": type_name,
        "vocab_size": vocab_size,
        **{name: ids.get(name) for name in TOKEN_IDS},
        **family.describe(config),
    }


def generation_json(ids: Mapping[str, Any], context: int) -> dict[str, Any]:
    """The content of `generation_config.json`: every id in `eos_token_id` ends an answer."""
    return {**{name: ids.get(name) for name in TOKEN_IDS}, "max_length": context}
