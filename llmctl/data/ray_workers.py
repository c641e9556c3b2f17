"""Work on parts by a Ray cluster, as batch functions of Daft. Only `engine=ray` imports this.

Every machine of the cluster must see the store under the same path, and have this version of llmctl.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import daft
import ray

from llmctl.config.errors import InputError, LlmctlError

T = TypeVar("T")
R = TypeVar("R")


class Ray:
    """A connection to the cluster, which also becomes the one that Daft's plans run on.

    Args:
        address: of the cluster; empty starts one on this machine.
        workers: parts worked on at a time; 0 for one on each core of the cluster.

    Raises:
        InputError: nobody answers at `address`.
    """

    def __init__(self, address: str, workers: int) -> None:
        try:
            if not ray.is_initialized():
                ray.init(address=address or None, log_to_driver=False, logging_level="ERROR")
            daft.set_runner_ray(address or None, noop_if_initialized=True)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(
                f"no Ray cluster answers at {address or 'this machine'}: {error}",
                hint="start one: ray start --head; then give --ray-address",
            ) from error
        if daft.get_or_infer_runner_type() != "ray":
            raise InputError("Daft already runs on this machine alone", hint="use engine=ray in a process of its own")
        self.workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """Results in the order of the tasks, each batch as soon as all before it are there."""
        if not tasks:
            return
        frame = daft.from_pydict(
            {"number": list(range(len(tasks))), "task": [pickle.dumps((function, task)) for task in tasks]}
        )
        done = frame.into_partitions(min(len(tasks), self.workers)).select(
            "number", _carry_out(daft.col("task")).alias("result")
        )
        waiting: dict[int, bytes] = {}
        due = 0
        for row in done.iter_rows():
            waiting[row["number"]] = row["result"]
            while due in waiting:
                failure, result = pickle.loads(waiting.pop(due))  # noqa: S301 - what our own worker pickled
                if failure is not None:
                    raise failure
                yield result
                due += 1


def _outcomes(tasks: daft.Series) -> list[bytes]:
    """On a machine of the cluster: `(error that the user can mend or None, result)` of each pickled task."""
    return [pickle.dumps(_outcome(task)) for task in tasks.to_pylist()]


def _outcome(pickled: bytes) -> tuple[LlmctlError | None, Any]:
    function, task = pickle.loads(pickled)  # noqa: S301 - what our own driver pickled
    try:
        return None, function(task)
    except LlmctlError as error:
        return error, None


_carry_out = daft.func.batch(return_dtype=daft.DataType.binary(), batch_size=1, max_retries=0)(_outcomes)
