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


@dataclass(frozen=True)
class Plan:
    """How the rows of a step are dealt: contiguous parts to ranks, contiguous parts of those to micro-batches.

    The loss and the gradient do not depend on it, since both are sums over one global denominator.
    """

    seed: int
    steps: int
    batches: Batches
    rank: int
    world_size: int
    micro_rows: int

    @classmethod
    def of(cls, config: TrainConfig, steps: int, rank: int, world_size: int) -> Plan:
        """The plan of one rank.

        Raises:
            UsageError: the rows of a step cannot be dealt evenly.
        """
        sizes = {"batch_rows": config.batch_rows}
        if config.batch_ramp is not None:
            sizes["batch_ramp.start_rows"] = config.batch_ramp.start_rows
        for name, size in sizes.items():
            if size % world_size:
                raise UsageError(
                    f"{name} ({size}) is not a multiple of the {world_size} ranks",
                    hint=f"give a multiple of {world_size}",
                )
        return cls(config.seed, steps, config.batches, rank, world_size, micro_rows(config, world_size))

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
        batch = self._source.batch(plan.own(plan.rows(step, self._source)))
        return [batch.slice(slice(start, start + plan.micro_rows)) for start in range(0, batch.rows, plan.micro_rows)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
