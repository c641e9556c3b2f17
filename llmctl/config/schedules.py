"""Schedules of the learning rate by name, and how many steps their phases take."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmctl.config.base import Config


class _Schedule(Config):
    """Warm-up, which every schedule has: linear from lr/warm-up steps to lr."""

    warmup_steps: int | None = Field(default=None, ge=0, description="Steps of warm-up, in place of warmup_fraction.")
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1, description="Warm-up as a share of all steps, rounded up.")


class _Falling(_Schedule):
    """A schedule that ends at a share of the peak."""

    final_fraction: float = Field(default=0.1, ge=0, le=1, description="Last learning rate, as a share of the peak.")


class CosineConfig(_Falling):
    """Half a cosine from the peak to the final rate (Loshchilov & Hutter, 2017)."""

    name: Literal["cosine"] = Field(default="cosine", description="Which schedule.")


class WsdConfig(_Falling):
    """Warm-up, stable, decay: constant, then a fall by 1 - sqrt at the end (Hägele et al., 2024)."""

    name: Literal["wsd"] = Field(default="wsd", description="Which schedule.")
    decay_fraction: float = Field(default=0.2, gt=0, le=1, description="Share of all steps in which the rate falls.")


class LinearConfig(_Falling):
    """A straight line from the peak to the final rate; to 0 after Bergsma et al., 2025 (arXiv:2502.15938)."""

    name: Literal["linear"] = Field(default="linear", description="Which schedule.")
    final_fraction: float = Field(default=0.0, ge=0, le=1, description="Last learning rate, as a share of the peak.")


class InverseSqrtConfig(_Falling):
    """The peak times sqrt(warm-up / step), never below the final rate (Vaswani et al., 2017)."""

    name: Literal["inverse_sqrt"] = Field(default="inverse_sqrt", description="Which schedule.")
    final_fraction: float = Field(default=0.0, ge=0, le=1, description="Least learning rate, as a share of the peak.")


class ConstantConfig(_Schedule):
    """The peak, once the warm-up is over."""

    name: Literal["constant"] = Field(default="constant", description="Which schedule.")


AnySchedule = CosineConfig | WsdConfig | LinearConfig | InverseSqrtConfig | ConstantConfig
ScheduleConfig = Annotated[AnySchedule, Field(discriminator="name")]


def warmup_steps(schedule: AnySchedule, steps: int) -> int:
    """Steps of warm-up in a run of `steps`, never more than there are."""
    if schedule.warmup_steps is not None:
        return min(schedule.warmup_steps, steps)
    return ceil(schedule.warmup_fraction * steps)


def decay_steps(schedule: AnySchedule, steps: int) -> int:
    """Steps in which the rate falls, in a run of `steps`."""
    after_warmup = steps - warmup_steps(schedule, steps)
    if isinstance(schedule, ConstantConfig):
        return 0
    if isinstance(schedule, WsdConfig):
        return min(ceil(schedule.decay_fraction * steps), after_warmup)
    return after_warmup


def ceil(value: float) -> int:
    """Round up, forgiving the last bit: 0.05 x 20 is 1, not 2."""
    return int(-(-(value - 1e-9) // 1)) if value > 0 else 0
