"""The next rollout while this one is learned from: drawn in a thread, by a copy of the weights as they are now."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as waiting
from typing import Any

import torch
from torch import Tensor, distributed, nn

from llmctl.model.device import product_dtype
from llmctl.objectives.dealt import Drawer
from llmctl.train.strategy import Call, Strategy, T


class Beside:
    """A copy of the policy, and this rank among those that draw ahead; a `Drawer`.

    The ranks meet in a group of their own, since their training meets at other times; collective.

    Args:
        strategy: that has prepared the model; what of it is frozen is shared.
        precision: of the run.
    """

    def __init__(self, strategy: Strategy, precision: str) -> None:
        given = strategy.model.parameters()
        weights = {id(one): nn.Parameter(one.detach().clone()) if one.requires_grad else one for one in given}
        self.model = copy.deepcopy(strategy.model, weights).eval()
        for block in self.model.layers:  # which training had replaced by that of its own block
            block.__dict__.pop("forward", None)
        self.rank, self.world_size = strategy.rank, strategy.world_size
        self._group: Any = distributed.new_group(backend="gloo") if distributed.is_initialized() else None
        self._autocast, self._device_type = product_dtype(precision), strategy.device.type

    def forward(self, call: Call) -> Tensor:
        """Of the copy, under autocast where the precision says so."""
        with torch.autocast(self._device_type, dtype=self._autocast, enabled=self._autocast is not None):
            return call(self.model)

    def gather(self, value: T) -> list[T]:
        """What every rank gave, in their order."""
        found: list[Any] = [value] * self.world_size
        if self._group is not None:
            distributed.all_gather_object(found, value, group=self._group)
        return found


class Ahead:
    """Does one thing at a time with a copy of a model, beside the steps that change the model.

    What is done depends on the copied weights alone, and never on how far the steps have come.

    Args:
        strategy: whose model is trained.
        precision: of the run.
    """

    def __init__(self, strategy: Strategy, precision: str) -> None:
        self._model, self._beside = strategy.model, Beside(strategy, precision)
        # As many threads as here: a new thread takes what was set last, which lanes may have.
        self._thread = ThreadPoolExecutor(
            1, "rollout", initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
        )
        self._doing: Future[object] | None = None

    @torch.no_grad()
    def begin(self, work: Callable[[Drawer], object]) -> None:
        """Take over the weights, and do `work` with them."""
        self.require()
        theirs = self._model.state_dict(keep_vars=True)
        for name, mine in self._beside.model.state_dict(keep_vars=True).items():
            if mine is not theirs[name]:
                mine.copy_(theirs[name])
        self._doing = self._thread.submit(work, self._beside)

    def wait(self) -> None:
        """Until it is done, whatever came of it."""
        if self._doing is not None:
            waiting([self._doing])

    def require(self) -> None:
        """Until it is done; raises what it raised, each time."""
        if self._doing is not None:
            self._doing.result()

    def close(self) -> None:
        """End the thread once it is done, whatever came of it."""
        self._thread.shutdown(wait=True)
