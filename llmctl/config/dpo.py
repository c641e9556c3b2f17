"""Configuration of the stages that learn from preferences, and of the reference's log-probabilities."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from llmctl.config.base import Config, execution
from llmctl.config.devices import Device, TrainPrecision
from llmctl.config.heldout import HELDOUT_FRACTION
from llmctl.config.lora import LoraConfig, check_single
from llmctl.config.optimizers import AdamWConfig, OptimizerConfig
from llmctl.config.preference import KtoConfig, PreferenceLossConfig, RewardLossConfig, SigmoidConfig, needs_reference
from llmctl.config.train import TrainConfig


class LogprobsConfig(Config):
    """How a reference scores answers, so that a run on them need not keep two models."""

    max_tokens: int | None = Field(
        None,
        ge=2,
        le=2**24,
        description="Longest prompt with its answer, up to the model's context; where left out, the length of the "
        "rows that the checkpoint was trained on, or its context where that is unknown.",
    )
    overlong: Literal["error", "drop"] = Field(
        "error", description="What is longer than max_tokens stops the run, or is dropped and counted."
    )
    unpaired: bool = Field(
        default=False,
        description="Take every answer by itself, and score beside it the answer to another prompt, as KTO needs.",
    )
    precision: TrainPrecision = Field("fp32", description="Number format of matrix products.")
    batch_tokens: int = execution(4096, ge=1, description="Tokens in one forward pass.")
    device: Device = execution("auto", description="auto: cuda where there is one.")
    threads: int = execution(0, ge=0, le=1024, description="CPU threads; 0: all cores.")


class PreferenceTrainConfig(TrainConfig):
    """What learning from preferences has in common, whatever is learned from them."""

    epochs: float = Field(1.0, gt=0, le=10_000, description="Passes over the packed pairs; rounded up to whole steps.")
    steps: int | None = Field(None, ge=1, le=10**9, description="Optimizer steps; from epochs where left out.")
    max_tokens: int | None = Field(
        None,
        ge=2,
        le=2**24,
        description="Longest prompt with its answer, up to the model's context; where left out, the length of the "
        "rows that the checkpoint was trained on, or its context where that is unknown.",
    )
    row_tokens: int | None = Field(
        None,
        ge=4,
        le=2**25,
        description="Length of a row, which holds whole pairs; that of the longest pair where left out.",
    )
    overlong: Literal["error", "drop"] = Field(
        "error", description="A pair with an answer beyond max_tokens stops the run, or is dropped and counted."
    )
    heldout_fraction: float = Field(
        HELDOUT_FRACTION,
        ge=0,
        lt=1,
        description="Share of the rows of a plain file kept out of training for the held-out figures, by hash of the "
        "document's id.",
    )

    @model_validator(mode="after")
    def _optimizer_reads_gradients_alone(self) -> PreferenceTrainConfig:
        if self.optimizer.name == "sophia":
            raise ValueError("sophia estimates its curvature from next tokens, not from pairs: take another optimizer")
        return self


class DpoConfig(PreferenceTrainConfig):
    """How a policy is fitted to preferences."""

    lora: LoraConfig | None = Field(
        None, description="Train adapters and publish these, in PEFT's format: {rank: 16, alpha: 32}; else all weights."
    )
    loss: PreferenceLossConfig = Field(default=SigmoidConfig(), description="Which loss, and its constants.")
    optimizer: OptimizerConfig = Field(
        default=AdamWConfig(lr=2e-5, weight_decay=0.0), description="Optimizer and its constants."
    )

    @field_validator("loss", mode="before")
    @classmethod
    def _loss_by_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        return {"name": "sigmoid", **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _adapters_alone(self) -> DpoConfig:
        check_single(self)
        return self

    @property
    def unpaired(self) -> bool:
        """Whether every answer is judged by itself."""
        return isinstance(self.loss, KtoConfig)

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with a reference model."""
        return needs_reference(self.loss)


class RewardConfig(PreferenceTrainConfig):
    """How a model learns to score answers."""

    loss: RewardLossConfig = Field(default=RewardLossConfig(), description="Margin and centring.")
    optimizer: OptimizerConfig = Field(
        default=AdamWConfig(lr=1e-4, weight_decay=0.0), description="Optimizer and its constants."
    )
