"""Our own layout, for shapes that no Hugging Face model has: `config.json` holds the configuration as it is.

transformers does not open it; llmctl does. The names of tensors are those of Llama, as far as Llama has them.
"""

from __future__ import annotations

from typing import Any

from llmctl.config.model import ModelConfig
from llmctl.model.families.family import Family, Fields
from llmctl.model.families.llama import llama_links


class OwnFields(Fields):
    """`config.json` of our own layout."""

    model: dict[str, Any]


def _shape(fields: OwnFields) -> ModelConfig:
    return ModelConfig.model_validate(fields.model)


def _describe(config: ModelConfig) -> dict[str, Any]:
    return {"model": config.model_dump(mode="json")}


OWN = Family("llmctl", "LlmctlForCausalLM", OwnFields, _shape, _describe, llama_links)
