"""Configuration of the stage `merge`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llmctl.config.base import INTEGER_LIMIT, Config


class MergeConfig(Config):
    """How several models become one. Adapters are merged into their checkpoint by what they say themselves."""

    method: Literal["linear", "slerp", "task", "ties", "dare"] = Field(
        "linear",
        description="linear: weighted mean. slerp: on the arc between two, where their weights say. task: the base and "
        "a weighted sum of what each learned. ties: the same of its largest parts, where signs agree. dare: of parts "
        "left by chance.",
    )
    weights: dict[str, float] = Field(
        default_factory=dict, description="Weight of each source by its name, REF=VALUE on the command line; else 1."
    )
    density: float = Field(0.5, gt=0, le=1, description="ties, dare: share of each tensor's changes that stays.")
    ties: Literal["mergekit", "peft"] = Field(
        "mergekit",
        description="mergekit: signs are elected by weighted changes, and the mean is over weights. peft: by changes, "
        "and the mean is over how many there are.",
    )
    dare: Literal["peft", "mergekit"] = Field(
        "peft", description="What stays is divided by the density (peft, the paper), or scaled to its old L1 norm."
    )
    seed: int = Field(0, ge=0, lt=INTEGER_LIMIT, description="Seed of dare.")

    @model_validator(mode="after")
    def _weights_have_a_sum(self) -> MergeConfig:
        if self.method in ("linear", "slerp") and self.weights and not sum(self.weights.values()) > 0:
            raise ValueError("the weights of a mean or an arc must have a positive sum")
        return self
