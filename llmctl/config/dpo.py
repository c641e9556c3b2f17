"""Configuration of the stages that learn from preferences, and of the reference's log-probabilities."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from llmctl.config.base import Config, execution, named
from llmctl.config.devices import Device, TrainPrecision
from llmctl.config.distill import MOST_KEPT, Temperature
from llmctl.config.optimizers import AdamWConfig, OptimizerConfig
from llmctl.config.preference import KtoConfig, PreferenceLossConfig, RewardLossConfig, SigmoidConfig, needs_reference
from llmctl.config.train import AdaptableConfig, FineTuneConfig, Learned, MaxTokens, Overlong


class LogprobsConfig(Config):
    """How a reference scores answers, or a teacher texts, so that a run on them need not keep two models."""

    max_tokens: MaxTokens = None
    overlong: Overlong = "error"
    unpaired: bool = Field(
        default=False,
        description="Take every answer by itself, and score beside it the answer to another prompt, as KTO needs.",
    )
    base: Literal["full", "nf4"] = Field(
        "full", description="nf4: with the matrices in 4 bits, as the reference of a policy that trains on such a base."
    )
    top_k: int = Field(
        default=64, ge=1, le=MOST_KEPT, description="Of chats or rows: likeliest tokens that are kept at each place."
    )
    temperature: Temperature = 1.0
    learn: Learned = Field(default="assistant", description="Of chats: what is scored, as the training on them has it.")
    precision: TrainPrecision = Field("fp32", description="Number format of matrix products.")
    batch_tokens: int = execution(4096, ge=1, description="Tokens in one forward pass.")
    device: Device = execution("auto", description="auto: cuda where there is one.")
    threads: int = execution(0, ge=0, le=1024, description="CPU threads; 0: all cores.")


class PreferenceTrainConfig(FineTuneConfig):
    """What learning from preferences has in common, whatever is learned from them."""

    row_tokens: int | None = Field(
        None,
        ge=4,
        le=2**25,
        description="Length of a row, which holds whole pairs; that of the longest pair where left out.",
    )

    @model_validator(mode="after")
    def _optimizer_reads_gradients_alone(self) -> PreferenceTrainConfig:
        if self.optimizer.name == "sophia":
            raise ValueError("sophia estimates its curvature from next tokens, not from pairs: take another optimizer")
        return self


class DpoConfig(PreferenceTrainConfig, AdaptableConfig):
    """How a policy is fitted to preferences."""

    loss: PreferenceLossConfig = Field(default=SigmoidConfig(), description="Which loss, and its constants.")
    optimizer: OptimizerConfig = Field(
        default=AdamWConfig(lr=2e-5, weight_decay=0.0), description="Optimizer and its constants."
    )

    @field_validator("loss", mode="before")
    @classmethod
    def _loss_by_name(cls, value: Any) -> Any:
        return named(value, "sigmoid")

    @property
    def unpaired(self) -> bool:
        """Whether every answer is judged by itself."""
        return isinstance(self.loss, KtoConfig)

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with a reference model."""
        return needs_reference(self.loss)


class RewardConfig(PreferenceTrainConfig):
    """How a model learns to score answers, or their steps."""

    loss: RewardLossConfig = Field(default=RewardLossConfig(), description="Margin and centring, of pairs alone.")
    step_separator: str = Field(
        "\n", max_length=100, description="What stands between the steps of an answer, where they are what is judged."
    )
    optimizer: OptimizerConfig = Field(
        default=AdamWConfig(lr=1e-4, weight_decay=0.0), description="Optimizer and its constants."
    )
