"""Loss scaling: in fp16 small gradients would become 0, so the loss is multiplied before the backward pass.

The scale is a power of two, halved where the gradient overflows and doubled after many good steps, as Micikevicius et
al. 2018 (arXiv:1710.03740, section 3.2) found it; the constants are those of torch's GradScaler.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

START = 2.0**16
LEAST = 1.0
GROW_AFTER = 2000  # good steps in a row


@dataclass
class LossScale:
    """What the loss is multiplied by, and the gradient divided by; part of a run's state.

    Attributes:
        value: the factor.
        good: steps without overflow since it last changed.
    """

    value: float = START
    good: int = 0

    def overflowed(self) -> bool:
        """Halve it; False where it cannot get smaller, so that scaling is not what is wrong."""
        if self.value <= LEAST:
            return False
        self.value, self.good = self.value / 2, 0
        return True

    def went_well(self) -> None:
        """Count a good step, and double the scale after enough of them."""
        self.good += 1
        if self.good >= GROW_AFTER:
            self.value, self.good = self.value * 2, 0


def unscale(parameters: Iterable[nn.Parameter], scale: float) -> None:
    """Divide every gradient by the scale, a power of two: exact but for what underflows."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(1.0 / scale)
