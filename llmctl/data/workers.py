"""Runs a function over many tasks: in this process, in worker processes, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeVar

from llmctl.config.devices import cores
from llmctl.config.engine import EngineConfig
from llmctl.config.errors import InputError, LlmctlError
from llmctl.pipeline.processes import end_with_parent
from llmctl.pipeline.stage import load

T = TypeVar("T")
R = TypeVar("R")


class Workers(Protocol):
    """Where the work on parts is done. Functions and tasks must pickle; equal tasks give equal results everywhere."""

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """`function(task)` of every task, in the order of the tasks."""
        ...


class Native:
    """Worker processes of this machine; a single task, or a single worker, runs in this process.

    The processes stay for the next pass, until the last reference to this goes.

    Args:
        workers: processes; 0 for one on each core that this process may use.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers or cores()
        self._pool: ProcessPoolExecutor | None = None

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """Results as they are due; an error of a worker is raised here."""
        count = min(self.workers, len(tasks))
        if count <= 1:
            yield from map(function, tasks)
            return
        pool = self._pool or ProcessPoolExecutor(
            self.workers, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent
        )
        self._pool = None  # until all went well: what fails or is abandoned ends its processes
        futures = [pool.submit(function, task) for task in tasks]
        try:
            for future in futures:
                yield future.result()
            self._pool = pool
        except BrokenProcessPool:
            raise LlmctlError(
                "a worker process was killed, maybe for want of memory",
                hint="set workers=1 or free memory, then run the same command again: finished parts are kept",
            ) from None
        finally:
            if self._pool is not pool:
                pool.shutdown(wait=True, cancel_futures=True)


class Threads:
    """Threads of this process: no start-up, for functions that spend their time outside the interpreter's lock.

    Args:
        workers: threads; 0 for one on each core that this process may use.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers or cores()

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """Results as they are due; an error of a thread is raised here."""
        pool = ThreadPoolExecutor(self.workers)
        try:
            yield from pool.map(function, tasks)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def in_order(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`function(item)` of every item, in order, worked on by some threads; items are taken as they are needed."""
    if threads <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def open_workers(config: EngineConfig) -> Workers:
    """Those that the configuration names.

    Raises:
        InputError: Ray is asked for and not installed, or its cluster cannot be reached.
    """
    if config.engine == "native":
        return Native(config.workers)
    try:
        workers: Workers = load("llmctl.data.ray_workers:Ray")(config.ray_address, config.workers)
    except ImportError:
        raise InputError("engine=ray needs Daft and Ray", hint="pip install 'llmctl[ray]'") from None
    return workers
