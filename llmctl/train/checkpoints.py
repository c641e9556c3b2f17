"""Resumable states of a run in `job.work`: each whole or absent, whenever the process dies.

A state is a directory `step-000100` with one part of tensors from each rank and `state.json`. It is written as
`step-000100.tmp` in a thread while training goes on, synced file by file, and renamed once every rank has written.
The metrics file is cut back to the length that the state records, so that the curve of a resumed run is that of an
uninterrupted one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from llmctl.config.errors import ElsewhereError, InputError, IntegrityError, LlmctlError, UsageError
from llmctl.config.keep import Keep
from llmctl.store.files import explain, publish_bytes, sync_directory
from llmctl.train.states import part_file, total_bytes

STATE_FILE = "state.json"
DIRECTORY = re.compile(r"^step-(\d{6,})$")
SLACK_BYTES = 1 << 20  # of a part beyond its tensors: the header, and the state.json beside it


class State(BaseModel):
    """`state.json`: where a run stands.

    Attributes:
        step: optimizer steps done.
        tokens: tokens trained on, padding left out.
        train_s: seconds spent in steps, over all attempts.
        elapsed_s: seconds since the start, over all attempts.
        metrics_bytes: length of the metrics file.
        parts: ranks that wrote the tensors.
        run: what the run is a function of, to refuse the state of another one.
        rounding: what else decides the order of sums (ranks, threads, …), to say so when it changes.
        heldout_loss: the last one that was measured, to keep the best.
        guard: what the guards remember.
        loss_scale: its value, and the good steps since it changed; in fp16 only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["llmctl.training-state/2"] = "llmctl.training-state/2"
    step: int
    tokens: int
    train_s: float
    elapsed_s: float
    metrics_bytes: int
    parts: int
    run: dict[str, Any]
    rounding: dict[str, int | str] = Field(default_factory=dict)
    heldout_loss: float | None = None
    guard: dict[str, list[float]] = Field(default_factory=dict)
    loss_scale: tuple[float, int] | None = None


class Saver:
    """Writes states behind training, one at a time. Every rank has one; rank 0 makes directories and publishes.

    Args:
        work: `job.work`, one directory that all ranks see.
        keep: which states stay.
        rank: of this process.
        add: sums figures over the ranks, which is also how they meet.
    """

    def __init__(self, work: Path, keep: Keep, *, rank: int, add: Callable[[Sequence[float]], Sequence[float]]) -> None:
        self._work, self._keep, self._rank, self._add = work, keep, rank, add
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="states")
        self._pending: tuple[State, Future[None]] | None = None

    def save(self, state: State, tensors: Mapping[str, Tensor]) -> None:
        """Begin to write a state, once the one before it is complete; collective.

        Args:
            state: what goes to `state.json`.
            tensors: this rank's part, which nobody changes any more.

        Raises:
            InputError: the one before could not be written.
        """
        self.finish()
        partial = _partial(self._work, state.step)
        if self._rank == 0:
            sweep(self._work)
            partial.mkdir(parents=True)
        self._add([0.0])  # the directory is there
        self._pending = (state, self._thread.submit(_write_part, partial / part_file(self._rank), tensors))

    def progress(self) -> tuple[bool, bool]:
        """Whether this rank has written its part of what is pending, and whether it failed to."""
        if self._pending is None or not self._pending[1].done():
            return False, False
        return True, self._pending[1].exception() is not None

    def settle(self, written: float, failed: float) -> None:
        """Publish the pending state if all ranks have written; the figures are sums of `progress` over the ranks.

        Raises:
            InputError: a rank could not write. What was complete before is still there.
        """
        if self._pending is None or written < self._pending[0].parts:
            return
        state, future = self._pending
        self._pending = None
        if failed:
            raise self._fault(state.step, future.exception())
        if self._rank == 0:
            self._publish(state)

    def finish(self) -> None:
        """Wait for what is pending and publish it; collective."""
        if self._pending is None:
            return
        wait([self._pending[1]])
        written, failed = self._add([float(flag) for flag in self.progress()])
        self.settle(written, failed)
        self._add([0.0])  # rank 0 has published: the others may end

    def _publish(self, state: State) -> None:
        partial = _partial(self._work, state.step)
        final = self._work / f"step-{state.step:06d}"
        publish_bytes(partial / STATE_FILE, state.model_dump_json(indent=2).encode() + b"\n")
        if final.exists():  # left by an attempt whose later state was damaged
            shutil.rmtree(final)
        os.replace(partial, final)
        sync_directory(self._work)
        found = complete(self._work)
        stay = self._keep.stay([(step, _heldout_loss(path)) for step, path in found])
        for step, old in found:
            if step not in stay:
                shutil.rmtree(old)

    def _fault(self, step: int, error: BaseException | None) -> LlmctlError:
        """What to say where a state could not be written."""
        if self._rank == 0:
            shutil.rmtree(_partial(self._work, step), ignore_errors=True)
        left = complete(self._work)
        intact = f"the state of step {left[-1][0]} is intact" if left else "there is no earlier state"
        kind: type[LlmctlError] = ElsewhereError if error is None else InputError
        reason = "another rank failed to write its part" if error is None else str(error)
        hint = error.hint if isinstance(error, LlmctlError) else "the same command resumes"
        return kind(f"cannot save the state of step {step}: {reason}; {intact}", hint=hint)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)


def _write_part(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One rank's tensors, synced.

    Raises:
        InputError: the disk is full; the message says how much was missing.
    """
    from safetensors.torch import save_file

    needed = total_bytes(tensors) + SLACK_BYTES
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise _full(path, needed, free)
    try:
        save_file(dict(tensors), path)
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
        sync_directory(path.parent)
    except Exception as error:  # safetensors has an exception of its own for what the system said
        path.unlink(missing_ok=True)
        if "No space left" in str(error) or "Disk quota" in str(error):
            raise _full(path, needed, shutil.disk_usage(path.parent).free) from error
        if isinstance(error, OSError):
            raise explain(error, str(path)) from error
        raise


def _full(path: Path, needed: int, free: int) -> InputError:
    missing = max(needed - free, 1) / 1e6
    return InputError(
        f"the disk that holds {path.parent.parent} is full: {needed / 1e6:.1f} MB needed, {missing:.1f} missing",
        hint="free space, then run the same command again: it resumes",
    )


def _heldout_loss(directory: Path) -> float | None:
    """Of a whole state; a damaged one counts as not measured."""
    try:
        return read(directory).heldout_loss
    except IntegrityError:
        return None


def _partial(work: Path, step: int) -> Path:
    return work / f"step-{step:06d}.tmp"


def complete(work: Path) -> list[tuple[int, Path]]:
    """Steps and directories of the whole states, oldest first."""
    if not work.is_dir():
        return []
    found = ((DIRECTORY.match(path.name), path) for path in work.iterdir())
    return sorted((int(match.group(1)), path) for match, path in found if match and (path / STATE_FILE).is_file())


def read(directory: Path) -> State:
    """The `state.json` of a whole state.

    Raises:
        IntegrityError: it cannot be read.
    """
    with damage_named(directory):
        return State.model_validate_json((directory / STATE_FILE).read_bytes())


@contextlib.contextmanager
def damage_named(directory: Path) -> Iterator[None]:
    """Whatever a reader of a damaged state raises, as an `IntegrityError` that names the state.

    Damaged files make torch and safetensors fail in many ways, hence every exception that can mean damage.
    """
    try:
        yield
    except (LlmctlError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise IntegrityError(
            f"the training state {directory} is damaged: {reason}", hint="--force starts anew"
        ) from error


def sweep(work: Path) -> None:
    """Remove what a killed process left half-written."""
    for path in work.glob("step-*.tmp"):
        shutil.rmtree(path)


def require_match(state: State, run: Mapping[str, Any]) -> None:
    """Refuse the state of another run.

    Raises:
        UsageError: it was saved under another configuration, or from other inputs.
    """
    if state.run == run:
        return
    changed = sorted(key for key in {*state.run, *run} if state.run.get(key) != run.get(key))
    raise UsageError(
        f"the unfinished run at step {state.step} was configured otherwise: {', '.join(changed)}",
        hint="run it as before to resume, or --force to start anew",
    )


def cut_metrics(path: Path, length: int) -> None:
    """Shorten the metrics file to `length` bytes.

    Raises:
        IntegrityError: it is shorter than that, so rows of the curve are lost.
    """
    size = path.stat().st_size if path.exists() else 0
    if size < length:
        raise IntegrityError(f"{path} lost rows that its training state counts on", hint="--force starts anew")
    if size > length:
        os.truncate(path, length)


def synced_length(path: Path) -> int:
    """The metrics file's length, once its bytes are on the disk."""
    if not path.exists():
        return 0
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())
        return os.fstat(handle.fileno()).st_size
