"""What happens to a step whose loss or gradient cannot be trusted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmctl.config.base import Config


class GuardConfig(Config):
    """Guards against figures that are not finite, and against spikes.

    A step that is skipped changes no weight and no moment; its rows are noted among the metrics. A rollback returns to
    the newest saved state and leaves out the offending step and some before it, as PaLM did (Chowdhery et al., 2022,
    section 5.1); where nothing is saved yet, it skips.
    """

    on_nan: Literal["stop", "skip", "rollback"] = Field(
        default="stop", description="A loss or gradient that is infinite or no number: stop, skip or rollback."
    )
    on_spike: Literal["off", "stop", "skip", "rollback"] = Field(
        default="off", description="A loss or gradient norm far above the last ones: off, stop, skip or rollback."
    )
    sigma: float = Field(
        default=6.0, gt=0, le=1000, description="A spike lies so many standard deviations above the mean."
    )
    window: int = Field(default=128, ge=4, le=100_000, description="Steps that mean and deviation are taken over.")
    after: int = Field(default=32, ge=2, le=100_000, description="Good steps to see before anything is a spike.")
    rollback_steps: int = Field(
        default=10, ge=0, le=100_000, description="Steps before the offending one that a rollback leaves out too."
    )
    most: int = Field(default=100, ge=1, le=10**6, description="Steps left out in one run; one more stops it.")
