"""The learning rate as a pure function of the step: no state, so resuming needs none."""

from __future__ import annotations

import math

from llmctl.config.schedules import (
    AnySchedule,
    ConstantConfig,
    CosineConfig,
    InverseSqrtConfig,
    LinearConfig,
    decay_steps,
    warmup_steps,
)


def rate_factor(schedule: AnySchedule, step: int, steps: int) -> float:
    """The learning rate of `step` (0-based) of `steps`, as a share of the peak; always above 0 in warm-up.

    Warm-up gives (step + 1) / w for the first w steps. After it, with x the share of the decay that lies
    behind (0 at its first step, 1 just after the last step) and f the final fraction:
    cosine f + (1 - f)(1 + cos πx)/2, WSD f + (1 - f)(1 - √x), linear f + (1 - f)(1 - x),
    inverse square root max(f, √(w / (step + 1))), constant 1.
    """
    if not 0 <= step < steps:
        raise ValueError(f"step must lie in [0, {steps}), got {step}")
    warmup = warmup_steps(schedule, steps)
    if step < warmup:
        return (step + 1) / warmup
    if isinstance(schedule, ConstantConfig):
        return 1.0
    if isinstance(schedule, InverseSqrtConfig):
        return max(schedule.final_fraction, math.sqrt(max(1, warmup) / (step + 1)))
    decay = decay_steps(schedule, steps)
    behind = max(0.0, (step - (steps - decay)) / decay) if decay else 0.0
    if isinstance(schedule, CosineConfig):
        share = (1.0 + math.cos(math.pi * behind)) / 2.0
    elif isinstance(schedule, LinearConfig):
        share = 1.0 - behind
    else:
        share = 1.0 - math.sqrt(behind)
    return schedule.final_fraction + (1.0 - schedule.final_fraction) * share
