"""The one training loop: rows of a step, gradient, update, measurement, state. Everything trains through `fit`."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llmctl.config.averages import average_share
from llmctl.config.errors import InputError, InterruptedRunError
from llmctl.config.optimizers import SophiaConfig
from llmctl.config.train import TrainConfig
from llmctl.model.kernels import set_backend
from llmctl.model.likelihood import Tensors
from llmctl.model.transformer import Transformer
from llmctl.pipeline.job import Job
from llmctl.store.artifact import Artifact
from llmctl.tokens.batch import Batch
from llmctl.tokens.rows import SCHEMA as ROWS_SCHEMA
from llmctl.train import checkpoints, heldout
from llmctl.train.balance import end_step, forget_counts, not_training
from llmctl.train.checkpoints import State
from llmctl.train.curvature import generator_of, sampled_labels
from llmctl.train.guards import HINT, LOSS, NORM, DivergedError, Fault, Guard
from llmctl.train.heldout import HeldOutSource, Measured
from llmctl.train.launch import give_up
from llmctl.train.loader import Feed, Plan
from llmctl.train.local import Local, choose_strategy
from llmctl.train.memory import exhaustion_explained
from llmctl.train.objective import Fitted, LooksAhead, Objective, feed_of, figures_of, settle
from llmctl.train.report import Report, bits_per_byte
from llmctl.train.resume import States
from llmctl.train.scaling import LossScale
from llmctl.train.schedules import rate_factor
from llmctl.train.stop import Stop
from llmctl.train.strategy import Strategy, garbage_of_now_on, precision_warning
from llmctl.train.watchdog import Beat, Watchdog

SHOWN_ROWS = 16
_DONE = {"skip": "left out", "rollback": "rolled back to the newest saved state, to leave it out"}


def fit(
    job: Job[Any],
    model: Transformer,
    objective: Objective,
    *,
    steps: int,
    heldout_rows: HeldOutSource | None,
    measured_before: bool = False,
) -> Fitted:
    """Train `model` for `steps` steps, continuing from the newest state in `job.work`.

    With `measured_before`, the held-out rows are measured before the first step too, as row 0 of the metrics.

    A pure function of (config, rows, the model's weights): which rows a step sees depends on the step alone.
    Under a launcher every rank calls this with the same model and rows.

    Raises:
        DivergedError: a loss or gradient cannot be trusted, and the guard says stop.
        InputError: a step has no target at all.
        InterruptedRunError: on SIGINT or SIGTERM, after saving the state.
        UsageError: the state in `job.work` is of another configuration, or memory runs out.
    """
    strategy = choose_strategy(job.config)
    report = Report(job, strategy, model)
    run = Run(job, strategy, model, objective, steps, heldout_rows, report)
    strategy.prepare(model, job.config, run.plan.micro_batches)
    if warning := precision_warning(job.config.precision, strategy.device):
        report.note(warning)
    report.note(f"{strategy.described()}; gradients clipped to a norm of {job.config.clip_norm:g}")
    wanted, compiled = job.config.attention_backend, job.config.compile
    report.note(set_backend(model, job.config.precision, strategy.device, wanted, compiled=compiled))
    run.resume()
    stopping = Stop(job.work, signals=strategy.world_size == 1, leads=run.leads)
    patience = job.config.watchdog_s if strategy.world_size > 1 and run.leads else 0.0
    watchdog = Watchdog(job.work, strategy.world_size, patience, functools.partial(give_up, job.work))
    with stopping as stop, feed_of(objective, run.plan, strategy) as feed, run.states.saver, watchdog, report:
        with exhaustion_explained(model, strategy.trained, job.config, run.shape), garbage_of_now_on():
            if measured_before and run.step == 0:
                run.measure()
            while run.step < steps:
                run.advance(feed, stop)
        run.states.saver.finish()
    return Fitted(strategy.weights(), run.totals())


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
        self,
        job: Job[Any],
        strategy: Strategy,
        model: Transformer,
        objective: Objective,
        steps: int,
        held: HeldOutSource | None,
        report: Report,
    ) -> None:
        self.job, self.model, self.report = job, model, report
        self.config: TrainConfig = job.config
        self.strategy = strategy
        self.objective = objective
        self.plan = Plan.of(self.config, steps, strategy.rank, strategy.world_size)
        self.held = held
        self.step = self.tokens = 0
        self.train_s = 0.0
        self.loss = math.nan
        self.measured: Measured | None = None
        self.guard = Guard(self.config.guard)
        self.states = States(job, strategy, self.plan, report.note)
        self.scale = LossScale() if self.config.precision == "fp16" else None
        self._beat = Beat(job.work, strategy.rank) if strategy.world_size > 1 else None
        self._seq_len = 0
        self._stop_agreed = False
        self._started = time.perf_counter()

    @property
    def leads(self) -> bool:
        """Whether this rank writes files."""
        return self.strategy.rank == 0

    def advance(self, feed: Feed, stop: Stop) -> None:
        """One step, and what is due after it; a step that ends in a rollback leaves nothing due."""
        before = self.step
        if self.step in self.guard.left_out:
            self._agree([], stop)
            self.step += 1
            self._log(left_out=1)
        else:
            self.take_step(feed, stop)
        if self.step <= before:
            return
        if share := average_share(self.config.average, self.step, self.plan.steps):
            self.strategy.trained.average(share)
        every, last = self.config.eval_every_steps, self.step == self.plan.steps
        if last:
            self._adopt_average()
        if last or (every and self.step % every == 0):
            self.measure()
        due = self.config.checkpoint_every_steps
        if self._stop_agreed and not last:
            self.save(wait=True)
            raise InterruptedRunError(
                f"stopped after step {self.step} of {self.plan.steps}, with its state saved",
                hint="the same command resumes",
            )
        if due and self.step % due == 0 and not last:
            self.save()

    def take_step(self, feed: Feed, stop: Stop) -> None:
        """Gradient of the mean loss over all targets of all ranks, clipped; one update; one row of metrics."""
        begun = time.perf_counter()
        batches = self._batches(feed)
        waited = time.perf_counter() - begun
        if not batches:  # nothing to learn: no update
            self._agree([], stop)
            self.step += 1
            self._log(no_update=1, **figures_of(self.objective))
            return
        seen = sum(self.plan.tokens(batch) for batch in batches)
        targets, tokens = self._agree([sum(batch.targets for batch in batches), seen], stop)
        self._seq_len = batches[0].reach
        self.report.start(self._seq_len)
        if targets == 0:
            raise InputError(f"{self._where()} hold no target at all", hint=self._look() or "look at them")
        self._estimate_curvature(batches, targets)
        if isinstance(self.objective, LooksAhead):
            self._at("a look ahead")
            self.objective.look_ahead(batches, self.strategy)
        if self.scale is not None:
            self.strategy.scale_loss(self.scale.value)
        nll, size = self._accumulate(batches, targets)
        loss = nll / targets
        factor = rate_factor(self.config.schedule, self.step, self.plan.steps)
        fault = self.guard.fault(LOSS, loss)
        norm = math.nan
        if fault is None or fault.action != "stop":
            norm = self.strategy.step(factor, lambda norm: (fault or self.guard.fault(NORM, norm)) is None)
            if fault is None and not math.isfinite(norm) and self._overflowed():
                return
            fault = fault or self.guard.fault(NORM, norm)
        if fault is not None:
            self._answer(fault)
            return
        if self.scale is not None:
            self.scale.went_well()
        spent = time.perf_counter() - begun
        self.guard.trust(loss, norm)
        self.step += 1
        self.tokens += int(tokens)
        self.train_s += spent
        self.report.took(spent)
        self.loss = loss
        lr, speed = self.config.optimizer.lr * factor, tokens / spent
        measured = {**bits_per_byte(nll, size), **self.report.utilisation(speed), **self.report.memory()}
        balance = {**end_step(self.model, self.strategy.sum), **figures_of(self.objective)}
        self._log(loss=loss, lr=lr, grad_norm=norm, tokens_per_s=speed, data_wait_s=waited, **measured, **balance)
        self.report.progress(self.step, self.plan.steps, loss=loss, lr=lr, tokens_per_s=speed)

    def _batches(self, feed: Feed) -> list[Batch]:
        """Those of the step; where nobody can make them now, the state is saved, for the weights are of whole steps."""
        self._at("the reading of rows")
        try:
            return feed.take(self.step)
        except InterruptedRunError:
            self.save(wait=True)
            raise

    def _agree(self, figures: list[float], stop: Stop) -> list[float]:
        """Sums over the ranks of `figures`; along with them, whether anyone asks for a stop or has saved."""
        self._at("the count of targets")
        written, failed = self.states.saver.progress()
        *sums, asked, written_all, failed_any = self.strategy.sum([*figures, stop.requested, written, failed])
        self._stop_agreed = asked > 0
        self.states.saver.settle(written_all, failed_any)
        return sums

    def _overflowed(self) -> bool:
        """Whether the gradient overflowed because the loss was scaled; the step then changes nothing but the scale."""
        if self.scale is None or not self.scale.overflowed():
            return False
        forget_counts(self.model)
        self.step += 1
        self._log(loss_scale=self.scale.value)
        return True

    def _answer(self, fault: Fault) -> None:
        """Do what the guard says about the step that was just computed and not applied."""
        forget_counts(self.model)
        at, rows = self.step, self._rows().tolist()
        incident = {"step": at + 1, "incident": fault.text, "action": fault.action, "rows": rows}
        where, hint = self._where(), "; ".join(part for part in (HINT, self._look()) if part)
        first, state = at, None
        if fault.action != "skip":
            self.states.saver.finish()
        if fault.action == "rollback" and (state := self.states.newest()) is not None:
            first = max(state.step, at - self.config.guard.rollback_steps)
            self._continue_from(state)
        enough = fault.action != "stop" and self.guard.leave_out(first, at)
        self.report.incident(**incident)
        if not enough:
            left = len(self.guard.left_out)
            most = f"; {left} steps left out are more than guard.most" if fault.action != "stop" else ""
            raise DivergedError(f"{fault.text} in {where}{most}", hint=hint)
        self.report.note(f"{fault.text} in {where}: {_DONE[fault.action if state else 'skip']}")
        if state is None:
            self.step += 1

    def _adopt_average(self) -> None:
        """Make the average the weights that are measured and published."""
        if self.config.average is not None:
            self.strategy.trained.adopt_average()
            self.strategy.refresh()

    def _accumulate(self, batches: list[Batch], targets: float) -> tuple[float, float]:
        """Add up the gradient of nll / targets over this rank's micro-batches.

        Returns:
            Of all ranks: the nll, and the bytes that the targets stand for (0 where that is not known).
        """
        nll = self.strategy.gradient([self._loss_of(batch) for batch in batches], targets, self._at)
        self._at("the update")
        size = 0 if self.held is None else sum(self.held.bytes_of(batch) for batch in batches)
        nll_of_all, bytes_of_all = self.strategy.sum([nll.item(), size])
        return nll_of_all, bytes_of_all

    def _estimate_curvature(self, batches: list[Batch], targets: float) -> None:
        """Where the optimizer is Sophia and an estimate is due: one from labels that the model draws itself."""
        if not isinstance(self.config.optimizer, SophiaConfig) or self.step % self.config.optimizer.interval:
            return
        local = self.strategy
        assert isinstance(local, Local), "the configuration refuses Sophia elsewhere"
        generator = generator_of(self.config.seed, self.step, local.device)
        for batch in batches:
            given = Tensors.of(batch, local.device)
            labels = local.forward(functools.partial(sampled_labels, batch=given, generator=generator))
            drawn = replace(given, labels=labels)
            local.backward(local.forward(functools.partial(self.objective.loss, batch=drawn)) / targets, last=False)
        local.estimate(targets)

    def _loss_of(self, batch: Batch) -> Callable[[Transformer], Tensor]:
        return lambda model: self.objective.loss(model, Tensors.of(batch, self.strategy.device))

    def _where(self) -> str:
        """The step that is being taken and its rows, for messages."""
        rows = self._rows().tolist()
        shown = ", ".join(map(str, rows[:SHOWN_ROWS])) + (", …" if len(rows) > SHOWN_ROWS else "")
        return f"step {self.step + 1}, rows {shown}"

    def _rows(self) -> NDArray[np.int64]:
        return self.plan.rows(self.step, self.objective.rows)

    def _look(self) -> str:
        """How to look at the rows of the step that is being taken; empty where they are in no artifact."""
        given = self.job.inputs.get("input")
        if not isinstance(given, Artifact) or given.manifest.schema_ != ROWS_SCHEMA or self.config.batch_ramp:
            return ""
        seed, batch_rows = self.config.seed, self.config.batch_rows
        return f"look at them: llmctl show {given.ref} --step {self.step + 1} --seed {seed} --batch-rows {batch_rows}"

    def measure(self) -> None:
        """Score the fixed sample of held-out rows, each rank a share of it."""
        if self.held is None or self.held.rows.count == 0:
            return
        wanted = self.config.heldout_rows
        with not_training(self.model):
            self.measured = heldout.sample_scored(self.held, wanted, self.plan, self.strategy, self._at_measuring)
        self._log(**self.measured.figures)
        self.report.note(f"step {self.step}: {self.measured.told}")

    def save(self, *, wait: bool = False) -> None:
        """Begin to write a resumable state; collective."""
        settle(self.objective)
        measured = self.measured
        self.states.save(
            step=self.step,
            tokens=self.tokens,
            train_s=self.train_s,
            elapsed_s=self.elapsed_s,
            heldout_loss=measured.loss if measured is not None and math.isfinite(measured.loss) else None,
            guard=self.guard.memory,
            loss_scale=None if self.scale is None else (self.scale.value, self.scale.good),
        )
        if wait:
            self.states.saver.finish()

    def resume(self) -> None:
        """Continue from the newest intact state, or start with an empty metrics file; collective.

        Raises:
            IntegrityError: there are states, and all are damaged.
        """
        state = self.states.newest()
        if state is not None:
            self._continue_from(state)
        elif self.leads:
            checkpoints.cut_metrics(self.job.metrics_file, 0)

    def _continue_from(self, state: State) -> None:
        """Take over where `state` stood."""
        self.step, self.tokens, self.train_s = state.step, state.tokens, state.train_s
        self._started = time.perf_counter() - state.elapsed_s
        self.guard.recall(state.guard)
        if self.scale is not None and state.loss_scale is not None:
            self.scale = LossScale(*state.loss_scale)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start, over all attempts, time between them left out."""
        return time.perf_counter() - self._started

    def shape(self) -> tuple[int, int]:
        """Rows and this rank's tokens of a row in one forward pass; of what came last."""
        return self.plan.micro_rows, self._seq_len // self.plan.parts

    def totals(self) -> dict[str, int | float | str]:
        """Figures of the whole run."""
        values: dict[str, int | float | str] = {
            "steps": self.step,
            "tokens": self.tokens,
            "tokens_per_s": self.tokens / max(self.train_s, 1e-9),
            "train_s": self.train_s,
            "attention": self.model.attention_backend,
        }
        values |= {**self.report.utilisation(self.tokens / max(self.train_s, 1e-9)), **self.report.memory()}
        if math.isfinite(self.loss):  # some step was good
            values["loss"] = self.loss
        if self.guard.left_out:
            values["left_out"] = len(self.guard.left_out)
        if self.measured is not None:
            values |= self.measured.figures
        return values

    def _at(self, doing: str) -> None:
        if self._beat is not None:
            self._beat.at(self.step, doing)

    def _at_measuring(self, _: int = 0) -> None:
        self._at("the held-out loss")

    def _log(self, **figures: float) -> None:
        self.report.row(self.step, **figures, tokens=self.tokens, elapsed_s=self.elapsed_s)
