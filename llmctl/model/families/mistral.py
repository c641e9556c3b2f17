"""Mistral: a Llama with a sliding window (Jiang et al. 2023, arXiv:2310.06825), from version 0.2 on without."""

from __future__ import annotations

from typing import Any

from llmctl.config.model import ModelConfig
from llmctl.model.families.family import DecoderFields, Family
from llmctl.model.families.llama import decoder_json, llama_links


class MistralFields(DecoderFields):
    """`config.json` of Mistral."""

    layer_types: None = None
    max_position_embeddings: int = 131_072
    sliding_window: int | None = 4096


def _shape(fields: MistralFields) -> ModelConfig:
    return fields.decoder(attention={"window": fields.sliding_window})


def _describe(config: ModelConfig) -> dict[str, Any]:
    return {**decoder_json(config), "sliding_window": config.attention.window}


MISTRAL = Family("mistral", "MistralForCausalLM", MistralFields, _shape, _describe, llama_links)
