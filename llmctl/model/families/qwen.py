"""Qwen2 (biases of query, key and value; arXiv:2407.10671) and Qwen3 (normalised queries and keys; arXiv:2505.09388).

Both may let some layers, by `layer_types`, see a window only.
"""

from __future__ import annotations

from typing import Any, Literal

from llmctl.config.model import ModelConfig
from llmctl.model.families.family import DecoderFields, Family
from llmctl.model.families.llama import decoder_json, llama_links

LayerType = Literal["sliding_attention", "full_attention"]


class QwenFields(DecoderFields):
    """What both share."""

    max_position_embeddings: int = 32_768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: list[LayerType] | None = None

    def windows(self) -> dict[str, Any]:
        """`window` and `pattern` of our attention."""
        if not self.use_sliding_window or self.sliding_window is None:
            return {}
        kinds = self.layer_types or [
            "sliding_attention" if layer >= self.max_window_layers else "full_attention"
            for layer in range(self.num_hidden_layers)
        ]
        if len(kinds) != self.num_hidden_layers:
            raise ValueError(f"layer_types names {len(kinds)} layers, but there are {self.num_hidden_layers}")
        if "sliding_attention" not in kinds:
            return {}
        pattern = tuple("local" if kind == "sliding_attention" else "global" for kind in kinds)
        return {"window": self.sliding_window, "pattern": pattern}


class Qwen2Fields(QwenFields):
    """`config.json` of Qwen2."""


class Qwen3Fields(QwenFields):
    """`config.json` of Qwen3."""

    head_dim: int | None = 128
    attention_bias: bool = False


def windows_json(config: ModelConfig) -> dict[str, Any]:
    """The fields that say which layers see a window."""
    windows = [config.attention.window_of(layer) for layer in range(config.layers)]
    return {
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
        "max_window_layers": next((layer for layer, window in enumerate(windows) if window), config.layers),
        "sliding_window": config.attention.window,
        "use_sliding_window": any(windows),
    }


def _qwen2_shape(fields: Qwen2Fields) -> ModelConfig:
    if fields.head_dim not in (None, fields.hidden_size // fields.num_attention_heads):
        raise ValueError("head_dim of a Qwen2 is hidden_size / num_attention_heads")
    return fields.decoder(attention={"qkv_bias": True, **fields.windows()})


def _qwen2_describe(config: ModelConfig) -> dict[str, Any]:
    return {**decoder_json(config), **windows_json(config)}


def _qwen3_shape(fields: Qwen3Fields) -> ModelConfig:
    bias = fields.attention_bias
    return fields.decoder(
        attention={"qk_norm": True, "qkv_bias": bias, "output_bias": bias, **fields.windows()},
    )


def qwen3_describe(config: ModelConfig) -> dict[str, Any]:
    """The fields of Qwen3 and of its mixture of experts."""
    return {**decoder_json(config), **windows_json(config), "attention_bias": config.attention.qkv_bias}


QWEN2 = Family("qwen2", "Qwen2ForCausalLM", Qwen2Fields, _qwen2_shape, _qwen2_describe, llama_links)
QWEN3 = Family("qwen3", "Qwen3ForCausalLM", Qwen3Fields, _qwen3_shape, qwen3_describe, llama_links)
