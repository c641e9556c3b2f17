"""Which rows a rank computes in which micro-batch, and reading them ahead of need."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from llmctl.config.batches import Batches
from llmctl.config.errors import UsageError
from llmctl.config.train import TrainConfig, micro_rows
from llmctl.model.sequence import columns
from llmctl.tokens.batch import Batch
from llmctl.tokens.order import part_of_rank, rows_of_step


class RowSource(Protocol):
    """Rows by number: `llmctl.tokens.rows.Rows`, or packed chats."""

    count: int

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """The rows at `indices`, in that order."""
        ...


@runtime_checkable
class Ordered(Protocol):
    """A source with an order of its own, such as a mixture of several; others are shuffled whole, epoch by epoch."""

    def rows_of_step(self, seed: int, step: int, batch_rows: int) -> NDArray[np.int64]:
        """The rows of a step, as a function of these numbers alone."""
        ...


class Feed(Protocol):
    """What gives each step its micro-batches; steps come in order, but for rollbacks."""

    def take(self, step: int) -> list[Batch]:
        """The micro-batches of `step` for this rank; none where the step has nothing to learn and changes nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class Plan:
    """How the rows of a step are dealt: contiguous parts to ranks, contiguous parts of those to micro-batches.

    The loss and the gradient do not depend on it, since both are sums over one global denominator.

    Attributes:
        seed: of the order.
        steps: of the run.
        batches: how many rows each step has.
        rank: that the rows are for; ranks that share rows count as one.
        world_size: number of those.
        micro_rows: rows in one forward pass.
        part: which part of each row's columns is this process's own.
        parts: into how many they are cut.
    """

    seed: int
    steps: int
    batches: Batches
    rank: int
    world_size: int
    micro_rows: int
    part: int = 0
    parts: int = 1

    @classmethod
    def of(cls, config: TrainConfig, steps: int, rank: int, world_size: int) -> Plan:
        """The plan of one rank.

        Raises:
            UsageError: the rows of a step cannot be dealt evenly.
        """
        parts = config.sequence_parallel
        if world_size % parts:
            raise UsageError(
                f"sequence_parallel={parts} does not divide the {world_size} ranks",
                hint=f"start a multiple of {parts} ranks, with --nproc or a launcher",
            )
        part, rank, world_size = rank % parts, rank // parts, world_size // parts
        sizes = {"batch_rows": config.batch_rows}
        if config.batch_ramp is not None:
            sizes["batch_ramp.start_rows"] = config.batch_ramp.start_rows
        for name, size in sizes.items():
            if size % world_size:
                sharing = f" groups of {parts} ranks" if parts > 1 else " ranks"
                raise UsageError(
                    f"{name} ({size}) is not a multiple of the {world_size}{sharing}",
                    hint=f"give a multiple of {world_size}",
                )
        return cls(config.seed, steps, config.batches, rank, world_size, micro_rows(config, world_size), part, parts)

    @property
    def micro_batches(self) -> int:
        """Forward passes of one rank in a full step; the last may be smaller."""
        return -(-(self.batches.batch_rows // self.world_size) // self.micro_rows)

    def rows(self, step: int, source: RowSource) -> NDArray[np.int64]:
        """All rows of `step`, over all ranks."""
        parts = [
            source.rows_of_step(self.seed, number, rows)
            if isinstance(source, Ordered)
            else rows_of_step(self.seed, number, rows, source.count)
            for number, rows in self.batches.spans(step)
        ]
        return np.concatenate(parts)

    def own(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """This rank's part of a step's rows."""
        return part_of_rank(rows, self.rank, self.world_size)

    def own_columns(self, batch: Batch) -> Batch:
        """The batch with targets in this process's columns only, so that each is counted once.

        Raises:
            UsageError: the columns cannot be cut evenly.
        """
        if self.parts == 1:
            return batch
        length = batch.tokens.shape[1]
        if length % self.parts:
            raise UsageError(
                f"rows of {length} tokens cannot be cut into {self.parts} equal parts (sequence_parallel)",
                hint=f"make them of {length + -length % self.parts}: --seq-len of pack, max_tokens of sft",
            )
        return batch.with_targets_in(columns(length, self.part, self.parts))

    def tokens(self, batch: Batch) -> int:
        """Tokens in this process's columns, padding left out."""
        own = columns(batch.tokens.shape[1], self.part, self.parts)
        return int(np.count_nonzero(batch.documents[:, own] >= 0))


class Loader:
    """Reads the rows of the next step in a thread while the current one computes. It has no state of its own."""

    def __init__(self, source: RowSource, plan: Plan) -> None:
        self._source = source
        self._plan = plan
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._ahead: tuple[int, Future[list[Batch]]] | None = None

    def take(self, step: int) -> list[Batch]:
        """The micro-batches of `step` for this rank."""
        if self._ahead is not None and self._ahead[0] == step:
            batches = self._ahead[1].result()
        else:
            batches = self._read(step)
        following = step + 1
        self._ahead = None
        if following < self._plan.steps:
            self._ahead = (following, self._thread.submit(self._read, following))
        return batches

    def _read(self, step: int) -> list[Batch]:
        plan = self._plan
        batch = plan.own_columns(self._source.batch(plan.own(plan.rows(step, self._source))))
        return [batch.slice(slice(start, start + plan.micro_rows)) for start in range(0, batch.rows, plan.micro_rows)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
