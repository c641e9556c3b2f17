"""Averages of the weights over steps, published in place of the last weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmctl.config.base import Config


class EmaConfig(Config):
    """Exponential moving average; a plain mean until that weighs the past more."""

    name: Literal["ema"] = Field(default="ema", description="Which average.")
    decay: float = Field(default=0.999, ge=0, lt=1, description="What a step keeps of the average before it.")


class TailConfig(Config):
    """Mean of the weights at the last few multiples before the end (Kaddour, 2022, arXiv:2209.14981)."""

    name: Literal["tail"] = Field(default="tail", description="Which average.")
    count: int = Field(default=5, ge=2, le=1000, description="Weights that are averaged, the last ones included.")
    every_steps: int = Field(default=100, ge=1, le=10**6, description="Steps between them.")


AverageConfig = Annotated[EmaConfig | TailConfig, Field(discriminator="name")]


def average_share(config: EmaConfig | TailConfig | None, step: int, steps: int) -> float:
    """How far the average moves to the weights after `step` steps of `steps`; 0 where it stays, 1 where it starts.

    A function of the step alone, so that resuming needs the average and nothing else.
    """
    if config is None:
        return 0.0
    if isinstance(config, EmaConfig):
        return max(1.0 - config.decay, 1.0 / step)
    before_end, rest = divmod(steps - step, config.every_steps)
    first = min(config.count - 1, (steps - 1) // config.every_steps)  # of those that there is room for
    return 0.0 if rest or before_end > first else 1.0 / (first - before_end + 1)
