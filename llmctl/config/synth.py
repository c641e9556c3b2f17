"""Configuration of synthesis: what a teacher is asked, which of its answers are kept."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from llmctl.config.base import INTEGER_LIMIT, Config, Pattern, execution, named
from llmctl.config.decontaminate import OverlapConfig
from llmctl.config.devices import Device, Precision
from llmctl.config.rewards import RewardConfig, listed
from llmctl.config.servers import ServerConfig
from llmctl.config.ways import AnswersConfig, ThoughtsConfig, WayConfig


class PriceConfig(Config):
    """What a teacher's tokens cost, in any currency."""

    asked: float = Field(ge=0, description="For a million tokens that it reads.")
    answered: float = Field(ge=0, description="For a million tokens that it says.")


class SynthConfig(Config):
    """How a teacher makes data, and what of it is kept.

    Without rewards every answer that is whole is kept up to `keep`: sequence-level distillation. With rewards, those
    that reach `least`: rejection sampling.
    """

    way: WayConfig = Field(AnswersConfig(), description="What is made, and how: by its name, or a block with `name`.")
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
    form: Pattern = Field("", max_length=10_000, description="Pattern of Python's re that every answer must hold.")
    least_words: int = Field(1, ge=1, description="Shorter answers are dropped.")
    most_words: int | None = Field(None, ge=1, description="Longer answers are dropped.")
    contamination: OverlapConfig | None = Field(
        default_factory=OverlapConfig,
        description="Drop what shares so many words in a row with an evaluation set (--against NAME=REF, and the "
        "held-out chats of --chats); null looks for none.",
    )
    max_new_tokens: int = Field(256, ge=1, le=2**20, description="Longest answer; longer ones are cut, and dropped.")
    temperature: float = Field(0.7, ge=0, le=100, description="Of sampling; 0 takes the likeliest token always.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample among the likeliest tokens whose mass reaches this.")
    limit: int | None = Field(None, ge=1, description="Ask the first N prompts, or about the first N passages, only.")
    seed: int = Field(0, ge=0, lt=INTEGER_LIMIT, description="Of the sampling.")
    server: ServerConfig = Field(ServerConfig(), description="The teacher, in place of a checkpoint.")
    price: PriceConfig | None = execution(
        None, description="What the teacher's tokens cost, for the total `cost`: {asked: 0.5, answered: 1.5}."
    )
    precision: Precision = Field("fp32", description="Number format of weights and activations.")
    running: int = execution(16, ge=1, le=4096, description="Answers that are given at one time.")
    device: Device = execution("auto", description="auto: cuda where there is one.")

    @field_validator("way", mode="before")
    @classmethod
    def _way_by_name(cls, value: Any) -> Any:
        return named(value, "answers")

    @field_validator("rewards", mode="before")
    @classmethod
    def _rewards_by_name(cls, value: Any) -> Any:
        return listed(value)

    @property
    def instructed(self) -> str:
        """What is put behind the last question."""
        return self.instruction or (self.way.think if isinstance(self.way, ThoughtsConfig) else "")

    @model_validator(mode="after")
    def _makes_sense(self) -> SynthConfig:
        if self.keep > self.samples:
            raise ValueError(f"keep ({self.keep}) is more than samples ({self.samples}): there are no others")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("temperature=0 gives the same answer every time: leave out samples, or sample")
        if self.most_words is not None and self.most_words < self.least_words:
            raise ValueError(f"no answer has {self.least_words} words or more and {self.most_words} or fewer")
        return self

    @model_validator(mode="after")
    def _rewards_are_there(self) -> SynthConfig:
        if self.prefer == "best" and not self.rewards:
            raise ValueError("prefer=best compares rewards: give rewards, or leave it out")
        if self.way.name in ("thoughts", "preferences") and not self.rewards:
            raise ValueError(f"way={self.way.name} judges answers by rewards: give --reward")
        return self

    @model_validator(mode="after")
    def _pairs_can_be_made(self) -> SynthConfig:
        if not self.way.compares:
            return self
        if self.samples < 2:
            raise ValueError("way=preferences compares answers to one prompt: give --samples 2 or more")
        if self.keep > 1 or self.prefer != "first":
            raise ValueError("way=preferences keeps the best and the worst answer: leave out keep and prefer")
        return self


def kind_of(config: SynthConfig) -> str:
    """What a run makes."""
    return config.way.output
