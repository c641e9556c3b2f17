"""Whether a step's loss and gradient can be trusted, by what the steps before it were like."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from llmctl.config.errors import GateError
from llmctl.config.guards import GuardConfig

HINT = "lower optimizer.lr or clip_norm"
LOSS, NORM = "loss", "grad_norm"  # as in the metrics
CALLED = {LOSS: "loss", NORM: "gradient's norm"}  # in messages


class DivergedError(GateError):
    """A loss or gradient that cannot be trusted, where the configuration says stop: nothing is published.

    It is a failed gate (exit code 6), since inputs and configuration are sound and the result is refused. No state
    of the step is saved, so the run resumes before it, and diverges again where nothing changes; a changed
    learning rate is another run.
    """


@dataclass(frozen=True)
class Fault:
    """Why a step cannot be trusted, and what to do about it.

    Attributes:
        text: such as `the loss is nan`.
        action: `stop`, `skip` or `rollback`.
    """

    text: str
    action: str


class Guard:
    """Judges steps. Its memory is part of the run's state, so that a resumed run judges alike.

    Args:
        config: thresholds and actions.

    Attributes:
        left_out: numbers of the steps (from 0) that change nothing.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.left_out: set[int] = set()
        self._seen: dict[str, list[float]] = {name: [] for name in CALLED}

    def fault(self, name: str, value: float) -> Fault | None:
        """What is wrong with a step's `LOSS` or `NORM`, if anything is."""
        called = CALLED[name]
        if not math.isfinite(value):
            return Fault(f"the {called} is {value}", self.config.on_nan)
        seen = self._seen[name]
        if self.config.on_spike == "off" or len(seen) < self.config.after:
            return None
        mean, deviation = statistics.fmean(seen), statistics.pstdev(seen)
        if value <= mean + self.config.sigma * deviation:
            return None
        usual = f"the mean of the last {len(seen)} steps is {mean:.4g}, their deviation {deviation:.2g}"
        return Fault(f"the {called} is {value:.4g}, where {usual}", self.config.on_spike)

    def trust(self, loss: float, norm: float) -> None:
        """Remember a good step."""
        for name, value in ((LOSS, loss), (NORM, norm)):
            seen = self._seen[name]
            seen.append(value)
            del seen[: -self.config.window]

    def leave_out(self, first: int, last: int) -> bool:
        """Leave out the steps from `first` to `last`; whether so many may be."""
        self.left_out.update(range(first, last + 1))
        return len(self.left_out) <= self.config.most

    @property
    def memory(self) -> dict[str, list[float]]:
        """What goes into a state."""
        return {**{name: list(seen) for name, seen in self._seen.items()}, "left out": sorted(self.left_out)}

    def recall(self, memory: Mapping[str, list[float]]) -> None:
        """Take over what a state holds; steps that are to be left out since stay so."""
        for name in self._seen:
            self._seen[name] = list(memory.get(name, []))
        self.left_out.update(int(step) for step in memory.get("left out", []))
