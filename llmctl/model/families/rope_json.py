"""Rotary positions as `config.json` tells them, in the form of transformers 5 and in those before it."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmctl.config.blocks import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling
from llmctl.config.model import ModelConfig

Kind = Literal["default", "linear", "yarn", "llama3"]


class RopeFields(BaseModel):
    """`rope_parameters`, or `rope_scaling` of earlier versions."""

    model_config = ConfigDict(extra="ignore", strict=True)

    rope_type: Kind | None = None
    type: Kind | None = None
    rope_theta: float | None = None
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: Literal[True] = True
    partial_rotary_factor: float = Field(default=1.0, ge=1, le=1)

    def scaling(self, context: int) -> RopeScaling | None:
        """Ours; what is not said follows transformers."""
        kind = self.rope_type or self.type or "default"
        if kind == "default":
            return None
        if self.factor is None:
            raise ValueError(f"the rotary scaling {kind} has no factor")
        if kind == "linear":
            return LinearScaling(factor=self.factor)
        original = self.original_max_position_embeddings or context
        if kind == "llama3":
            low, high = self.low_freq_factor, self.high_freq_factor
            if low is None or high is None:
                raise ValueError("the rotary scaling llama3 has no low_freq_factor or no high_freq_factor")
            return Llama3Scaling(
                factor=self.factor, original_context=original, low_frequency_factor=low, high_frequency_factor=high
            )
        return YarnScaling(
            factor=self.factor,
            original_context=original,
            beta_fast=self.beta_fast or 32.0,
            beta_slow=self.beta_slow or 1.0,
            attention_factor=self._attention_factor(self.factor),
        )

    def _attention_factor(self, factor: float) -> float | None:
        if self.attention_factor is not None or not (self.mscale and self.mscale_all_dim):
            return self.attention_factor
        return sharpening(factor, self.mscale) / sharpening(factor, self.mscale_all_dim)


def sharpening(factor: float, mscale: float) -> float:
    """What YaRN multiplies cosine and sine by: 0.1 m ln(factor) + 1 (arXiv:2309.00071, equation 22)."""
    return 0.1 * mscale * math.log(factor) + 1.0


def rope_json(config: ModelConfig, **more: Any) -> dict[str, Any]:
    """The fields of `config.json`: where transformers 5 looks, and where its predecessors and vLLM do.

    Args:
        config: with rotary positions.
        more: further entries of the scaling.
    """
    scaling = config.rope_scaling
    entries: dict[str, Any] = {"rope_type": "default"}
    if isinstance(scaling, LinearScaling):
        entries = {"rope_type": "linear", "factor": scaling.factor}
    elif isinstance(scaling, Llama3Scaling):
        entries = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_context,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
        }
    elif isinstance(scaling, YarnScaling):
        entries = {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_context,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
        }
        if scaling.attention_factor is not None:
            entries["attention_factor"] = scaling.attention_factor
    elif scaling is not None:
        raise ValueError(f"no layout expresses the rotary scaling {scaling.name}")
    entries |= more
    fields: dict[str, Any] = {
        "rope_theta": config.rope_base,
        "rope_parameters": {**entries, "rope_theta": config.rope_base},
    }
    if scaling is not None:
        fields["rope_scaling"] = entries
    return fields
