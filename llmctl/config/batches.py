"""How many rows each step has: the same for all, or more and more at the beginning. A function of the step alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pydantic import Field

from llmctl.config.base import Config


class BatchRampConfig(Config):
    """Small batches first (McCandlish et al., 2018, arXiv:1812.06162: the useful size grows as the loss falls)."""

    start_rows: int = Field(ge=1, le=2**20, description="Rows of the first step; batch_rows must be a multiple of it.")
    steps: int = Field(ge=1, le=10**7, description="Steps over which the batch grows to batch_rows, in equal parts.")


@dataclass(frozen=True)
class Batches:
    """Sizes of the steps, and where each begins in the endless order of rows.

    With K = batch_rows / start_rows, step s (from 0) has start_rows x min(K, 1 + floor((K - 1) s / steps)) rows.

    Attributes:
        batch_rows: of a full step.
        ramp: how the first ones are smaller; None where they are not.
    """

    batch_rows: int
    ramp: BatchRampConfig | None = None

    def rows_at(self, step: int) -> int:
        """Rows of a step."""
        if self.ramp is None or step >= self.ramp.steps:
            return self.batch_rows
        levels = self.batch_rows // self.ramp.start_rows
        return self.ramp.start_rows * (1 + (levels - 1) * step // self.ramp.steps)

    def spans(self, step: int) -> list[tuple[int, int]]:
        """The rows of a step as whole batches of one size: (number, rows), in order.

        So whatever gives the rows of the n-th batch of a size gives those of any step.
        """
        first, size = self.first_of(step), self.rows_at(step)
        unit = math.gcd(first, size)
        return [(number, unit) for number in range(first // unit, (first + size) // unit)]

    def first_of(self, step: int) -> int:
        """Rows of all the steps before one."""
        if self.ramp is None:
            return step * self.batch_rows
        levels, steps = self.batch_rows // self.ramp.start_rows, self.ramp.steps
        small = min(step, steps)
        # The batch grows by start_rows at step ceil(steps x level / (levels - 1)), for each level from 1 on.
        grown = sum(max(0, small + -(steps * level) // (levels - 1)) for level in range(1, levels))
        return self.ramp.start_rows * (small + grown) + (step - small) * self.batch_rows
