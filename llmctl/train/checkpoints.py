"""Resumable states of a run in `job.work`: each whole or absent, whenever the process dies.

A state is a directory `step-000100` that holds what the strategy wrote and `state.json`. It is written as
`step-000100.tmp`, synced file by file and renamed; the two newest are kept. The metrics file is cut back
to the length that the state records, so that the curve of a resumed run is that of an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmctl.config.errors import IntegrityError, LlmctlError, UsageError
from llmctl.store.files import publish_bytes, sync_directory

STATE_FILE = "state.json"
DIRECTORY = re.compile(r"^step-(\d{6,})$")
KEEP = 2


class State(BaseModel):
    """`state.json`: where a run stands.

    Attributes:
        step: optimizer steps done.
        tokens: tokens trained on, padding left out.
        train_s: seconds spent in steps, over all attempts.
        elapsed_s: seconds since the start, over all attempts.
        metrics_bytes: length of the metrics file.
        strategy: `local` or `deepspeed`; with the next two, what can read the tensors.
        world_size: number of ranks.
        zero: ZeRO stage.
        run: what the run is a function of, to refuse the state of another one.
        rounding: what else decides the order of sums (threads, rows of a micro-batch), to say so when it changes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["llmctl.training-state/1"] = "llmctl.training-state/1"
    step: int
    tokens: int
    train_s: float
    elapsed_s: float
    metrics_bytes: int
    strategy: str
    world_size: int
    zero: int
    run: dict[str, Any]
    rounding: dict[str, int | str] = Field(default_factory=dict)


def save(work: Path, state: State, write: Callable[[Path], None], meet: Callable[[], None], *, leads: bool) -> None:
    """Write a state. Every rank calls this; rank 0 makes the directory and publishes it.

    Args:
        work: `job.work`, one directory that all ranks see.
        state: what goes to `state.json`.
        write: writes this rank's tensors into the directory that it is given.
        meet: waits for all ranks.
        leads: whether this is rank 0.
    """
    final = work / f"step-{state.step:06d}"
    partial = final.with_name(final.name + ".tmp")
    if leads:
        sweep(work)
        partial.mkdir(parents=True)
    meet()
    write(partial)
    meet()
    if leads:
        publish_bytes(partial / STATE_FILE, state.model_dump_json(indent=2).encode() + b"\n")
        _sync_tree(partial)
        if final.exists():  # left by an attempt whose later state was damaged
            shutil.rmtree(final)
        os.replace(partial, final)
        sync_directory(work)
        for _, old in complete(work)[:-KEEP]:
            shutil.rmtree(old)
    meet()


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

    Damaged files make torch, safetensors and pickle fail in many ways, hence every exception that can mean damage.
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


def require_match(state: State, *, strategy: str, world_size: int, zero: int, run: dict[str, Any]) -> None:
    """Refuse a state that this run cannot continue exactly.

    Raises:
        UsageError: it was saved by another strategy, number of ranks, ZeRO stage or configuration.
    """
    if state.run != run:
        changed = sorted(key for key in {*state.run, *run} if state.run.get(key) != run.get(key))
        raise UsageError(
            f"the unfinished run at step {state.step} was configured otherwise: {', '.join(changed)}",
            hint="run it as before to resume, or --force to start anew",
        )
    saved = (state.strategy, state.world_size, state.zero)
    if saved != (strategy, world_size, zero):
        raise UsageError(
            f"the unfinished run at step {state.step} was saved with nproc={state.world_size} zero={state.zero}, "
            f"and its state is bound to them; this run has nproc={world_size} zero={zero}",
            hint=f"give --nproc {state.world_size} --zero {state.zero} to resume, or --force to start anew",
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


def _sync_tree(directory: Path) -> None:
    """Flush every file and directory below `directory` to the disk."""
    for root, _, files in os.walk(directory):
        for name in files:
            with open(Path(root, name), "rb") as handle:
                os.fsync(handle.fileno())
        sync_directory(Path(root))
