"""The next rollout while this one is learned from: drawn in a thread, by a copy of the weights as they are now."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as waiting

import torch

from llmctl.model.transformer import Transformer


class Ahead:
    """Does one thing at a time with a copy of a model, beside the steps that change the model.

    What is done depends on the copied weights alone, and never on how far the steps have come.

    Args:
        model: that is trained, and prepared for it; what of it is frozen is shared.
    """

    def __init__(self, model: Transformer) -> None:
        frozen = {id(one): one for one in model.parameters() if not one.requires_grad}
        self._model, self._copy = model, copy.deepcopy(model, frozen).eval()
        # As many threads as here: a new thread takes what was set last, which lanes may have.
        self._thread = ThreadPoolExecutor(
            1, "rollout", initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
        )
        self._doing: Future[object] | None = None

    @torch.no_grad()
    def begin(self, work: Callable[[Transformer], object]) -> None:
        """Take over the weights, and do `work` with them."""
        self.require()
        theirs = self._model.state_dict(keep_vars=True)
        for name, mine in self._copy.state_dict(keep_vars=True).items():
            if mine is not theirs[name]:
                mine.copy_(theirs[name])
        self._doing = self._thread.submit(work, self._copy)

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
