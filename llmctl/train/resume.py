"""Saving and resuming one run: its states, and what has changed since they were written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llmctl.config.base import semantic_values
from llmctl.config.errors import IntegrityError
from llmctl.config.keep import Keep
from llmctl.config.train import TrainConfig
from llmctl.pipeline.job import Job
from llmctl.train import checkpoints
from llmctl.train.checkpoints import Saver, State
from llmctl.train.loader import Plan
from llmctl.train.states import Reader
from llmctl.train.strategy import Strategy


class States:
    """The states of one run in `job.work`. All methods are collective.

    Args:
        job: the run.
        strategy: whose tensors are saved; prepared before anything is restored.
        plan: how rows are dealt.
        note: tells the user one line, on rank 0.
    """

    def __init__(self, job: Job[Any], strategy: Strategy, plan: Plan, note: Callable[[str], None]) -> None:
        self._job, self._strategy, self._plan, self._note = job, strategy, plan, note
        self._config: TrainConfig = job.config
        keep = Keep.parse(self._config.keep)
        self.saver = Saver(job.work, keep, rank=strategy.rank, add=strategy.sum)
        self.identity = {
            **semantic_values(self._config),
            "steps": plan.steps,
            "inputs": {role: given.digest for role, given in sorted(job.inputs.items())},
        }

    def save(self, **position: Any) -> None:
        """Begin to write a state; `position` is what the loop knows of it (`step`, `tokens`, …)."""
        leads = self._strategy.rank == 0
        state = State(
            **position,
            metrics_bytes=checkpoints.synced_length(self._job.metrics_file) if leads else 0,
            parts=self._strategy.world_size,
            run=self.identity,
            rounding=self._rounding(),
        )
        self.saver.save(state, self._strategy.trained.snapshot())

    def newest(self) -> State | None:
        """Restore the newest intact state and cut the metrics back to it; None where nothing is saved.

        Raises:
            IntegrityError: there are states, and all are damaged.
        """
        if self._strategy.rank == 0:
            checkpoints.sweep(self._job.work)
        self._strategy.sum([0.0])
        faults: list[IntegrityError] = []
        for _, directory in reversed(checkpoints.complete(self._job.work)):
            found = self._restore(directory)
            if isinstance(found, State):
                self._take_over(found)
                return found
            faults.append(found)
            self._note(f"{found.what}; trying the one before it")
        if faults:
            raise faults[0]
        return None

    def _restore(self, directory: Path) -> State | IntegrityError:
        """Load one state on every rank, or what is wrong with it on any of them."""
        mine, fault = self._strategy, None
        try:
            state = checkpoints.read(directory)
            checkpoints.require_match(state, self.identity)
            with checkpoints.damage_named(directory), Reader(directory, state.parts) as reader:
                mine.trained.restore(reader)
        except IntegrityError as error:
            fault = error
        if mine.sum([fault is not None])[0] == 0:
            mine.refresh()
            return state
        elsewhere = f"the training state {directory} is damaged: another rank cannot read it"
        return fault or IntegrityError(elsewhere, hint="--force starts anew")

    def _take_over(self, state: State) -> None:
        if self._strategy.rank == 0:
            checkpoints.cut_metrics(self._job.metrics_file, state.metrics_bytes)
        self._note(f"resuming after step {state.step} of {self._plan.steps}")
        now = self._rounding()
        changed = [
            f"{key} {state.rounding[key]} became {now[key]}"
            for key in now
            if state.rounding.get(key, now[key]) != now[key]
        ]
        if changed:
            self._note(f"{', '.join(changed)}: results agree with those of an undisturbed run to rounding only")

    def _rounding(self) -> dict[str, int | str]:
        """What decides the order in which sums are taken, by the names of the configuration."""
        return {
            "device": self._strategy.device.type,
            "threads": torch.get_num_threads(),
            "micro_batch_rows": self._plan.micro_rows,
            "compile": str(self._config.compile).lower(),
            "nproc": self._strategy.world_size,
            "zero": self._strategy.zero,
            "sequence_parallel": self._plan.parts,
            "lanes": self._config.lanes,
            "attention_backend": self._config.attention_backend,
        }
