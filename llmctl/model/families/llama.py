"""Llama 1 to 3 and all that took their layout over: SmolLM, TinyLlama, Yi and others."""

from __future__ import annotations

from typing import Any

from llmctl.config.model import ModelConfig
from llmctl.model.families.family import DecoderFields, Family
from llmctl.model.families.links import Link, Shapes, same
from llmctl.model.families.rope_json import rope_json

HEAD = "lm_head.weight"


class LlamaFields(DecoderFields):
    """`config.json` of Llama."""

    attention_bias: bool = False
    mlp_bias: bool = False


def their_name(name: str) -> str:
    """What Hugging Face's Llama calls our parameter; ours were named after it."""
    return name if name == HEAD else f"model.{name}"


def llama_links(config: ModelConfig, shapes: Shapes) -> list[Link]:
    """Name by name."""
    del config
    return [same(name, their_name(name)) for name in shapes]


def decoder_json(config: ModelConfig) -> dict[str, Any]:
    """The fields that all relatives of Llama share."""
    return {
        "attention_dropout": 0.0,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "max_position_embeddings": config.context,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "use_cache": True,
        **rope_json(config),
    }


def _shape(fields: LlamaFields) -> ModelConfig:
    return fields.decoder(
        attention={"qkv_bias": fields.attention_bias, "output_bias": fields.attention_bias},
        feed_forward={"bias": fields.mlp_bias},
    )


def _describe(config: ModelConfig) -> dict[str, Any]:
    if config.width % config.heads:
        raise ValueError("transformers refuses a Llama whose width is no multiple of its heads")
    return {
        **decoder_json(config),
        "attention_bias": config.attention.qkv_bias,
        "mlp_bias": config.feed_forward.bias,
    }


LLAMA = Family("llama", "LlamaForCausalLM", LlamaFields, _shape, _describe, llama_links)
