"""Where the figures of a run go: the metrics file, the progress line, trackers."""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from llmctl.config.train import TrainConfig
from llmctl.model.device import product_dtype
from llmctl.model.transformer import Transformer, flops_per_token
from llmctl.pipeline.job import Job
from llmctl.train.measures import Peak, measured_peak, memory_bytes, vendor_peak
from llmctl.train.strategy import Strategy
from llmctl.train.trackers import Tracker, build

COMPARED_STEPS = 6  # the first ones of a compiled run, of which most are free of compiling


class Report:
    """Takes the figures of one run. On ranks other than 0 it does nothing.

    Args:
        job: the run.
        strategy: what computes.
        model: whose operations are counted.

    Raises:
        UsageError: a tracker's package is missing, or the vendor's peak is asked for and not known.
    """

    def __init__(self, job: Job[Any], strategy: Strategy, model: Transformer) -> None:
        self._job, self._strategy, self._model = job, strategy, model
        config: TrainConfig = job.config
        self._leads = strategy.rank == 0
        self._peak: Peak | None = None
        self._flops = 0
        self._first_steps: list[float] = []
        self._trackers: list[Tracker] = []
        if not self._leads:
            return
        dtype = product_dtype(config.precision) or torch.float32
        self._peak = vendor_peak(strategy.device) if config.peak == "vendor" else None
        self._peak = self._peak or measured_peak(strategy.device, dtype)
        where, run = Path(config.track_to or ""), f"{job.out.parent.parent.name}-{job.out.parent.name}"
        self._trackers = [build(name, where, run, config.model_dump(mode="json")) for name in config.track]

    def note(self, text: str) -> None:
        """Tell the user one line."""
        if self._leads:
            self._job.progress.note(text)

    def row(self, step: int, **figures: float) -> None:
        """One row of metrics."""
        if not self._leads:
            return
        self._job.log({"step": step, **figures})
        for tracker in self._trackers:
            tracker.log(figures, step)

    def incident(self, step: int, **facts: Any) -> None:
        """A step that was not trusted, as a row of metrics."""
        if self._leads:
            self._job.log({"step": step, **facts})

    def progress(self, done: int, steps: int, **facts: float) -> None:
        """How far the run is."""
        if self._leads:
            self._job.progress.update(done, steps, "steps", **facts)

    def start(self, seq_len: int) -> None:
        """Learn how long rows are, and say what utilisation is measured against."""
        if self._flops or self._peak is None:
            return
        self._flops = flops_per_token(self._model.config, self._model.vocab_size, seq_len)
        self.note(f"utilisation is of {self._peak.flops / 1e12:.3g} TFLOP/s: {self._peak.told}")

    def took(self, seconds: float) -> None:
        """Learn how long a step took, and say what compiling cost once there are steps to compare the first with."""
        if not self._job.config.compile or len(self._first_steps) == COMPARED_STEPS:
            return
        self._first_steps.append(seconds)
        if len(self._first_steps) == COMPARED_STEPS:
            usual = min(self._first_steps)
            spent = sum(self._first_steps) - COMPARED_STEPS * usual
            self.note(f"compiling took {spent:.0f} s so far; a step now takes {usual:.3g} s")

    def utilisation(self, tokens_per_s: float) -> dict[str, float]:
        """`mfu`: operations of the model for its tokens, over what all ranks could do; nothing where unknown."""
        if self._peak is None or not self._flops or not math.isfinite(tokens_per_s):
            return {}
        return {"mfu": tokens_per_s * self._flops / (self._peak.flops * self._strategy.world_size)}

    def memory(self) -> dict[str, float]:
        """`peak_memory_bytes` of this rank."""
        return {"peak_memory_bytes": memory_bytes(self._strategy.device)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self._trackers:
            tracker.close()


def bits_per_byte(nll: float, size: float) -> dict[str, float]:
    """Of the rows of a step, marks between documents included; nothing where the bytes are not known."""
    return {"bits_per_byte": nll / math.log(2) / size} if size else {}
