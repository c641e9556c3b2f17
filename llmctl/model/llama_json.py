"""The shape of a model as Hugging Face writes it: `config.json` and `generation_config.json` of Llama."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmctl.config.errors import InputError, UsageError
from llmctl.config.model import CUSTOM, ModelConfig
from llmctl.store.files import explained

ARCHITECTURE = "LlamaForCausalLM"
LARGEST_CONFIG_BYTES = 1 << 20


class _Rope(BaseModel):
    """Rotary settings as transformers 5 writes them; a scaled rotary is not one that the model has."""

    model_config = ConfigDict(extra="ignore", strict=True)

    rope_type: Literal["default"] = "default"
    rope_theta: float | None = None


class _LlamaFields(BaseModel):
    """The fields of `config.json` that decide what is computed; all others are ignored, `auto_map` among them."""

    model_config = ConfigDict(extra="ignore", strict=True)

    architectures: list[Literal["LlamaForCausalLM"]] = Field(min_length=1, max_length=1)
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    intermediate_size: int
    vocab_size: int = Field(ge=1, le=1 << 24)
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    head_dim: int | None = None
    tie_word_embeddings: bool = False
    hidden_act: Literal["silu"] = "silu"
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False
    rope_theta: float | None = None
    rope_parameters: _Rope | None = None
    rope_scaling: _Rope | None = None


def refuse_beyond(config: ModelConfig) -> None:
    """Refuse a shape that the layout cannot express, so that no checkpoint says less than its weights need.

    Raises:
        UsageError: the shape has a part that no plain Llama has; its fields are named.
    """
    beyond = config.beyond_llama()
    if beyond:
        named = ", ".join(f"model.{field}" for field in beyond)
        raise UsageError(
            f"the Llama layout that checkpoints are kept in cannot express {named}",
            hint="leave these fields at their defaults, or choose a Llama preset, such as model.name=tiny",
        )


def to_json(config: ModelConfig, vocab_size: int, dtype: torch.dtype, ids: Sequence[int | None]) -> dict[str, Any]:
    """The content of `config.json`.

    The base of the rotary frequencies stands in `rope_parameters`, where transformers 5 looks, and in
    `rope_theta`, where its predecessors and vLLM do; likewise `dtype` and `torch_dtype`.

    Args:
        config: the shape.
        vocab_size: rows of the embedding.
        dtype: what the weights are saved in.
        ids: those of BOS, EOS and padding; None where there is none.
    """
    bos, eos, pad = ids
    type_name = str(dtype).removeprefix("torch.")
    return {
        "architectures": [ARCHITECTURE],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "dtype": type_name,
        "eos_token_id": eos,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "max_position_embeddings": config.context,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "pad_token_id": pad,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_theta": config.rope_base, "rope_type": "default"},
        "rope_theta": config.rope_base,
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": type_name,
        "use_cache": True,
        "vocab_size": vocab_size,
    }


def generation_json(bos: int | None, stops: Sequence[int], pad: int | None, context: int) -> dict[str, Any]:
    """The content of `generation_config.json`: every id in `stops` ends an answer."""
    return {
        "bos_token_id": bos,
        "eos_token_id": list(stops),
        "max_length": context,
        "pad_token_id": pad,
    }


def read_json(path: Path) -> tuple[ModelConfig, int]:
    """Read `config.json`.

    Returns:
        The shape (its name is `custom`) and the vocabulary size.

    Raises:
        InputError: the file is missing, not JSON, of another architecture, or a field is missing or wrong.
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
    if parsed.get("architectures") != [ARCHITECTURE]:
        raise InputError(
            f"{path}: architectures is {parsed.get('architectures')!r}; only [{ARCHITECTURE!r}] can be opened",
            hint="convert the checkpoint to the Llama layout",
        )
    try:
        return _to_config(_LlamaFields.model_validate(parsed))
    except ValidationError as error:
        raise InputError(f"{path}: {_faults(error)}", hint="the fields must be those of a plain Llama") from None


def _to_config(fields: _LlamaFields) -> tuple[ModelConfig, int]:
    """Our shape from theirs. A field out of bounds is a `ValidationError`, as one of a wrong type is."""
    ropes = [rope.rope_theta for rope in (fields.rope_parameters, fields.rope_scaling) if rope]
    base = next((theta for theta in [*ropes, fields.rope_theta] if theta is not None), 10_000.0)
    config = ModelConfig(
        name=CUSTOM,
        width=fields.hidden_size,
        layers=fields.num_hidden_layers,
        heads=fields.num_attention_heads,
        kv_heads=fields.num_key_value_heads or fields.num_attention_heads,
        ffn_width=fields.intermediate_size,
        context=fields.max_position_embeddings,
        rope_base=base,
        norm_eps=fields.rms_norm_eps,
        tied_embeddings=fields.tie_word_embeddings,
    )
    if fields.head_dim not in (None, config.head_width):
        raise ValidationError.from_exception_data(
            ARCHITECTURE,
            [
                {
                    "type": "value_error",
                    "loc": ("head_dim",),
                    "input": fields.head_dim,
                    "ctx": {"error": ValueError(f"must be hidden_size / num_attention_heads = {config.head_width}")},
                }
            ],
        )
    return config, fields.vocab_size


def _faults(error: ValidationError) -> str:
    """All faults on one line, each with its field."""
    faults = []
    for fault in error.errors():
        field = ".".join(str(part) for part in fault["loc"])
        faults.append(f"{field}: {fault['msg']}" if field else fault["msg"])
    return "; ".join(faults)
