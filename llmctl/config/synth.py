"""Configuration of synthesis: what a teacher is asked, which of its answers are kept."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from llmctl.config.base import INTEGER_LIMIT, Config, execution
from llmctl.config.devices import Device, Precision
from llmctl.config.rewards import RewardConfig, listed


class SynthConfig(Config):
    """How a teacher answers prompts, and which answers become chats.

    Without rewards every answer that is whole is kept up to `keep`: sequence-level distillation. With rewards, those
    that reach `least`: rejection sampling.
    """

    samples: int = Field(1, ge=1, le=4096, description="Answers to each prompt.")
    keep: int = Field(1, ge=1, le=4096, description="Most answers to one prompt that are kept.")
    prefer: Literal["first", "best", "shortest"] = Field(
        "first",
        description="Which of those that pass: the first drawn, those of most reward, or those of fewest tokens.",
    )
    rewards: tuple[RewardConfig, ...] = Field(
        (), description="What answers are judged by: exact, number, regex, …, or file.py:function."
    )
    least: float = Field(1.0, description="Least reward, all of them added up by weight, of an answer that is kept.")
    reward_timeout_s: float = Field(
        10.0, gt=0, le=86_400, description="Seconds after which a function or pattern counts as hanging on an answer."
    )
    instruction: str = Field(
        "",
        max_length=20_000,
        description="Put behind the last question when the teacher is asked, such as: Think step by step.",
    )
    keep_instruction: bool = Field(False, description="Leave the instruction in the chats that are written.")
    max_new_tokens: int = Field(256, ge=1, le=2**20, description="Longest answer; longer ones are cut, and dropped.")
    temperature: float = Field(0.7, ge=0, le=100, description="Of sampling; 0 takes the likeliest token always.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample among the likeliest tokens whose mass reaches this.")
    limit: int | None = Field(None, ge=1, description="Ask the first N prompts only.")
    seed: int = Field(0, ge=0, lt=INTEGER_LIMIT, description="Of the sampling.")
    precision: Precision = Field("fp32", description="Number format of weights and activations.")
    running: int = execution(16, ge=1, le=4096, description="Answers that are given at one time.")
    device: Device = execution("auto", description="auto: cuda where there is one.")

    @field_validator("rewards", mode="before")
    @classmethod
    def _rewards_by_name(cls, value: Any) -> Any:
        return listed(value)

    @model_validator(mode="after")
    def _makes_sense(self) -> SynthConfig:
        if self.keep > self.samples:
            raise ValueError(f"keep ({self.keep}) is more than samples ({self.samples}): there are no others")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("temperature=0 gives the same answer every time: leave out samples, or sample")
        if self.prefer == "best" and not self.rewards:
            raise ValueError("prefer=best compares rewards: give rewards, or leave it out")
        if any(reward.kind == "scorer" for reward in self.rewards):
            raise ValueError("synth takes no reward model: leave out scorer")
        return self
