"""Micro-batches side by side: on a CPU each is computed by its own share of the threads, none waits for another.

The products of a small model are too small for many threads: they wait for one another at the end of each operation,
and all of them wait where other work takes a core away. Threads that each compute a micro-batch of their own meet
once in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from llmctl.config.train import TrainConfig
from llmctl.model.transformer import Transformer

LARGEST = 50_000_000  # parameters; the products of larger models keep several threads busy, and a lane costs gradients
Loss = Callable[[], Tensor]


def lanes_of(config: TrainConfig, model: Transformer, device: torch.device, micro_batches: int) -> int:
    """How many micro-batches are computed at a time: as asked for, or as pay; 1 where they cannot be.

    What a model learns beside its next token, and recomputation, keep notes on the model while it runs, which one
    lane at a time can do.
    """
    alone = device.type != "cpu" or config.recompute != "none" or config.optimizer.name == "sophia"
    if alone or model.config.experts is not None or model.config.mtp is not None:
        return 1
    wanted = config.lanes or (torch.get_num_threads() if model.parameters_count() <= LARGEST else 1)
    return max(1, min(wanted, micro_batches))


class Lanes:
    """Threads that each add up the gradient of every n-th micro-batch.

    Args:
        count: of lanes, which share the threads of this process.
        parameters: what gradients are of; each lane keeps one set of them while a step is computed.

    Attributes:
        count: of lanes.
    """

    def __init__(self, count: int, parameters: Sequence[Tensor]) -> None:
        self.count = count
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        threads = torch.get_num_threads()
        share = max(1, threads // count)
        self._pool = ThreadPoolExecutor(count, "lane", initializer=torch.set_num_threads, initargs=(share,))

    def gradient(self, losses: Sequence[Loss], scale: float) -> Tensor:
        """Add the gradient of scale x Σ losses to `.grad`; the sum of the losses, fp64.

        The sum is taken lane by lane, so that it depends on the number of lanes and not on which is faster.
        """
        lanes = [losses[first :: self.count] for first in range(min(self.count, len(losses)))]
        parts = [self._pool.submit(self._lane, lane, scale) for lane in lanes]
        done = [part.result() for part in parts]
        for _, gradients in done:
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return torch.stack([value for values, _ in done for value in values]).double().sum()

    def _lane(self, losses: Sequence[Loss], scale: float) -> tuple[list[Tensor], list[Tensor | None]]:
        """Values, and the sum of the gradients."""
        values: list[Tensor] = []
        summed: list[Tensor | None] = [None] * len(self._parameters)
        for loss in losses:
            value = loss()
            values.append(value.detach())
            gradients = torch.autograd.grad(value * scale, self._parameters, allow_unused=True)
            summed = [_sum(before, new) for before, new in zip(summed, gradients, strict=True)]
        return values, summed


def _sum(before: Tensor | None, new: Tensor | None) -> Tensor | None:
    if before is None or new is None:
        return new if before is None else before
    return before.add_(new)
