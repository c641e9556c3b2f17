"""The one training loop: rows of a step, gradient, update, measurement, state. Everything trains through `fit`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.config.base import semantic_values
from llmctl.config.errors import GateError, InputError, IntegrityError, InterruptedRunError
from llmctl.config.train import TrainConfig
from llmctl.model.device import choose_device
from llmctl.model.likelihood import Tensors
from llmctl.model.transformer import Transformer
from llmctl.pipeline.job import Job
from llmctl.store.artifact import Artifact
from llmctl.tokens.batch import Batch
from llmctl.tokens.order import permuted
from llmctl.tokens.rows import SCHEMA as ROWS_SCHEMA
from llmctl.train import checkpoints, heldout
from llmctl.train.checkpoints import State
from llmctl.train.heldout import HeldOut
from llmctl.train.launch import environment
from llmctl.train.loader import Loader, Plan, RowSource
from llmctl.train.local import Local
from llmctl.train.schedules import rate_factor
from llmctl.train.stop import Stop
from llmctl.train.strategy import Strategy, keep_freed_memory, precision_warning, set_threads

SHOWN_ROWS = 16
DIVERGED_HINT = "lower optimizer.lr or clip_norm"


class DivergedError(GateError):
    """A loss or gradient that is infinite or not a number: the run ends at that step and publishes nothing.

    It is a failed gate (exit code 6), since inputs and configuration are sound and the result is refused. No state
    of the step is saved, so the run resumes before it, and diverges again where nothing changes; a changed
    learning rate is another run.
    """


class Objective(Protocol):
    """What is learned: rows, and the loss of some of them."""

    @property
    def rows(self) -> RowSource:
        """Where the rows of a step come from."""
        ...

    def loss(self, model: Transformer, batch: Tensors) -> Tensor:
        """Sum of the loss over the batch's targets: a scalar, to be divided by `Batch.targets` over all ranks."""
        ...


@dataclass(frozen=True)
class HeldOutRows:
    """What is measured during training.

    Attributes:
        rows: of which a fixed sample is scored.
        byte_lengths: int32 [V], bytes that each id stands for.
    """

    rows: RowSource
    byte_lengths: NDArray[np.int32]


@dataclass(frozen=True)
class Fitted:
    """What training gave.

    Attributes:
        weights: full fp32 weights by name on rank 0, None on other ranks.
        totals: steps, tokens, loss, tokens_per_s, and the held-out figures where there were held-out rows.
    """

    weights: dict[str, Tensor] | None
    totals: dict[str, int | float | str]


def fit(
    job: Job[Any], model: Transformer, objective: Objective, *, steps: int, heldout_rows: HeldOutRows | None
) -> Fitted:
    """Train `model` for `steps` steps, continuing from the newest state in `job.work`.

    A pure function of (config, rows, the model's weights): which rows a step sees depends on the step alone.
    Under a launcher every rank calls this with the same model and rows.

    Raises:
        DivergedError: a loss or gradient is not finite.
        InputError: a step has no target at all.
        InterruptedRunError: on SIGINT or SIGTERM, after saving the state.
        UsageError: the state in `job.work` is of another configuration or set of ranks.
    """
    strategy = choose_strategy(job.config)
    run = Run(job, strategy, objective, steps, heldout_rows)
    strategy.prepare(model, job.config, run.plan.micro_batches)
    if run.leads and (warning := precision_warning(job.config.precision, strategy.device)):
        job.progress.note(warning)
    run.resume()
    stopping = Stop(job.work, signals=strategy.world_size == 1, leads=run.leads)
    with stopping as stop, Loader(objective.rows, run.plan) as loader:
        while run.step < steps:
            run.advance(loader, stop)
    return Fitted(strategy.weights(), run.totals())


def choose_strategy(config: TrainConfig) -> Strategy:
    """Plain torch, or DeepSpeed where the configuration or a launcher's environment asks for ranks."""
    ranks = environment()
    set_threads(config.threads, ranks.local_size)
    keep_freed_memory()
    device = choose_device(config.device, ranks.local_rank)
    if not config.uses_deepspeed and ranks.world_size == 1:
        return Local(device)
    from llmctl.train.deepspeed import DeepSpeed

    return DeepSpeed(ranks, device, config.zero)


class Run:
    """Where one rank stands in a run.

    Attributes:
        step: optimizer steps done.
        tokens: tokens trained on by all ranks, padding left out.
        train_s: seconds spent in steps.
        loss: mean loss of the last step.
        measured: the last held-out measurement.
    """

    def __init__(
        self, job: Job[Any], strategy: Strategy, objective: Objective, steps: int, held: HeldOutRows | None
    ) -> None:
        self.job = job
        self.config: TrainConfig = job.config
        self.strategy = strategy
        self.objective = objective
        self.plan = Plan.of(self.config, steps, strategy.rank, strategy.world_size)
        self.held = held
        self.step = self.tokens = 0
        self.train_s = 0.0
        self.loss = math.nan
        self.measured: HeldOut | None = None
        self._stop_agreed = False
        self._started = time.perf_counter()
        self.identity = {
            **semantic_values(self.config),
            "steps": steps,
            "inputs": {role: given.digest for role, given in sorted(job.inputs.items())},
        }

    @property
    def leads(self) -> bool:
        """Whether this rank writes files."""
        return self.strategy.rank == 0

    def advance(self, loader: Loader, stop: Stop) -> None:
        """One step, and what is due after it."""
        self.take_step(loader, stop_asked=stop.requested)
        every = self.config.eval_every_steps
        if self.step == self.plan.steps or (every and self.step % every == 0):
            self.measure()
        due = self.config.checkpoint_every_steps
        if self._stop_agreed and self.step < self.plan.steps:
            self.save()
            raise InterruptedRunError(
                f"stopped after step {self.step} of {self.plan.steps}, with its state saved",
                hint="the same command resumes",
            )
        if due and self.step % due == 0 and self.step < self.plan.steps:
            self.save()

    def take_step(self, loader: Loader, *, stop_asked: bool) -> None:
        """Gradient of the mean loss over all targets of all ranks, clipped; one update; one row of metrics."""
        begun = time.perf_counter()
        batches = loader.take(self.step)
        waited = time.perf_counter() - begun
        seen = sum(int(np.count_nonzero(batch.documents >= 0)) for batch in batches)
        targets, tokens, asked = self.strategy.sum([sum(batch.targets for batch in batches), seen, stop_asked])
        self._stop_agreed = asked > 0
        if targets == 0:
            raise InputError(f"{self._where()} hold no target at all", hint=self._look() or "look at them")
        nll = self._accumulate(batches, targets)
        lr = self.config.optimizer.lr * rate_factor(self.config.schedule, self.step, self.plan.steps)
        if not math.isfinite(nll):
            raise DivergedError(f"the loss is {nll} in {self._where()}", hint=self._diverged_hint())
        norm = self.strategy.step(lr)
        if not math.isfinite(norm):
            raise DivergedError(f"the gradient's norm is {norm} in {self._where()}", hint=self._diverged_hint())
        spent = time.perf_counter() - begun
        self.step += 1
        self.tokens += int(tokens)
        self.train_s += spent
        self.loss = nll / targets
        self._log(loss=self.loss, lr=lr, grad_norm=norm, tokens_per_s=tokens / spent, data_wait_s=waited)
        self._report(lr, tokens / spent)

    def _accumulate(self, batches: list[Batch], targets: float) -> float:
        """Add up the gradient of nll / targets over this rank's micro-batches; the nll of all ranks."""
        nll = torch.zeros((), dtype=torch.float64, device=self.strategy.device)
        for batch in batches:
            loss = self.strategy.forward(self._loss_of(batch))
            nll += loss.detach()
            self.strategy.backward(loss / targets)
        return self.strategy.sum([nll.item()])[0]

    def _loss_of(self, batch: Batch) -> Callable[[Transformer], Tensor]:
        tensors = Tensors.of(batch, self.strategy.device)
        return lambda model: self.objective.loss(model, tensors)

    def _where(self) -> str:
        """The step that is being taken and its rows, for messages."""
        rows = self.plan.rows(self.step, self.objective.rows).tolist()
        shown = ", ".join(map(str, rows[:SHOWN_ROWS])) + (", …" if len(rows) > SHOWN_ROWS else "")
        return f"step {self.step + 1}, rows {shown}"

    def _look(self) -> str:
        """How to look at the rows of the step that is being taken; empty where they are in no artifact."""
        given = self.job.inputs.get("input")
        if not isinstance(given, Artifact) or given.manifest.schema_ != ROWS_SCHEMA:
            return ""
        seed, batch_rows = self.config.seed, self.config.batch_rows
        return f"look at them: llmctl show {given.ref} --step {self.step + 1} --seed {seed} --batch-rows {batch_rows}"

    def _diverged_hint(self) -> str:
        return "; ".join(part for part in (DIVERGED_HINT, self._look()) if part)

    def measure(self) -> None:
        """Score the fixed sample of held-out rows, each rank a share of it."""
        if self.held is None or self.held.rows.count == 0:
            return
        self.measured = self._score(self.held)
        self._log(**_heldout_figures(self.measured))
        bits = self.measured.bits_per_byte
        self._note(f"step {self.step}: held-out loss {self.measured.loss:.4f}, {bits:.4f} bits per byte")

    @torch.no_grad()
    def _score(self, held: HeldOutRows) -> HeldOut:
        count = min(self.config.heldout_rows or held.rows.count, held.rows.count)
        sample = np.sort(permuted(0, np.arange(count), held.rows.count))
        parts = [sample[start : start + self.plan.micro_rows] for start in range(0, count, self.plan.micro_rows)]

        def share() -> Iterator[Batch]:
            for first in range(0, len(parts), self.strategy.world_size):
                mine = first + self.strategy.rank
                batch = held.rows.batch(parts[min(mine, len(parts) - 1)])
                # Every rank takes part in every pass, as sharded weights are gathered in step; a surplus is blank.
                yield batch if mine < len(parts) else batch.without_targets()

        values = heldout.accumulated(share(), held.byte_lengths, self.strategy.device, self.strategy.forward)
        return heldout.total(self.strategy.sum(values))

    def save(self) -> None:
        """Write a resumable state; collective."""
        state = checkpoints.State(
            step=self.step,
            tokens=self.tokens,
            train_s=self.train_s,
            elapsed_s=self.elapsed_s,
            metrics_bytes=checkpoints.synced_length(self.job.metrics_file) if self.leads else 0,
            strategy=self.strategy.name,
            world_size=self.strategy.world_size,
            zero=self.strategy.zero,
            run=self.identity,
            rounding=self._rounding(),
        )
        checkpoints.save(self.job.work, state, self.strategy.save, self._meet, leads=self.leads)

    def resume(self) -> None:
        """Continue from the newest intact state, or start with an empty metrics file; collective.

        Raises:
            IntegrityError: there are states, and all are damaged.
        """
        if self.leads:
            checkpoints.sweep(self.job.work)
        self._meet()
        faults: list[IntegrityError] = []
        for _, directory in reversed(checkpoints.complete(self.job.work)):
            found = self._restore(directory)
            if isinstance(found, State):
                self._continue_from(found)
                return
            faults.append(found)
            self._note(f"{found.what}; trying the one before it")
        if faults:
            raise faults[0]
        if self.leads:
            checkpoints.cut_metrics(self.job.metrics_file, 0)

    def _restore(self, directory: Path) -> State | IntegrityError:
        """Load one state on every rank, or what is wrong with it on any of them."""
        mine, fault = self.strategy, None
        try:
            state = checkpoints.read(directory)
            checkpoints.require_match(
                state, strategy=mine.name, world_size=mine.world_size, zero=mine.zero, run=self.identity
            )
            with checkpoints.damage_named(directory):
                mine.load(directory)
        except IntegrityError as error:
            fault = error
        if mine.sum([fault is not None])[0] == 0:
            return state
        elsewhere = f"the training state {directory} is damaged: another rank cannot read its part"
        return fault or IntegrityError(elsewhere, hint="--force starts anew")

    def _continue_from(self, state: State) -> None:
        """Take over where `state` stood."""
        if self.leads:
            checkpoints.cut_metrics(self.job.metrics_file, state.metrics_bytes)
        self._note(f"resuming after step {state.step} of {self.plan.steps}")
        now = self._rounding()
        changed = [
            f"{key} {state.rounding[key]} became {now[key]}"
            for key in now
            if state.rounding.get(key, now[key]) != now[key]
        ]
        if changed:
            self._note(f"{', '.join(changed)}: results agree with those of an undisturbed run to rounding only")
        self.step, self.tokens, self.train_s = state.step, state.tokens, state.train_s
        self._started -= state.elapsed_s

    def _rounding(self) -> dict[str, int | str]:
        """What decides the order in which sums are taken, by the names of the configuration."""
        return {
            "device": self.strategy.device.type,
            "threads": torch.get_num_threads(),
            "micro_batch_rows": self.plan.micro_rows,
            "compile": str(self.config.compile).lower(),
        }

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start, over all attempts, time between them left out."""
        return time.perf_counter() - self._started

    def totals(self) -> dict[str, int | float | str]:
        """Figures of the whole run."""
        values: dict[str, int | float | str] = {
            "steps": self.step,
            "tokens": self.tokens,
            "loss": self.loss,
            "tokens_per_s": self.tokens / self.train_s,
            "train_s": self.train_s,
        }
        if self.measured is not None:
            values |= _heldout_figures(self.measured)
        return values

    def _meet(self) -> None:
        self.strategy.sum([0.0])

    def _note(self, text: str) -> None:
        if self.leads:
            self.job.progress.note(text)

    def _log(self, **figures: float) -> None:
        if self.leads:
            self.job.log({"step": self.step, **figures, "tokens": self.tokens, "elapsed_s": self.elapsed_s})

    def _report(self, lr: float, tokens_per_s: float) -> None:
        if self.leads:
            self.job.progress.update(
                self.step, self.plan.steps, "steps", loss=self.loss, lr=lr, tokens_per_s=tokens_per_s
            )


def _heldout_figures(measured: HeldOut) -> dict[str, int | float]:
    """What was measured, by the names of metrics and totals; what is undefined (no targets, no text) is left out."""
    figures = {"heldout_loss": measured.loss, "heldout_bits_per_byte": measured.bits_per_byte}
    defined = {name: value for name, value in figures.items() if math.isfinite(value)}
    return {**defined, "heldout_targets": measured.targets}
