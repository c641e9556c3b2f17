"""A rollout by several ranks: each asks and judges for whole groups, and all of them know all answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from llmctl.model.transformer import Transformer
from llmctl.objectives.rollouts import Answer
from llmctl.objectives.served import LostError, Meeting, require_server
from llmctl.train.strategy import Call

Work = Callable[[Sequence[int]], tuple[list[Answer], float]]
"""The judged answers to some of the requests, by number, and the seconds that drawing them took."""


class Drawer(Meeting, Protocol):
    """What makes a rollout: a `Strategy`, or a copy of its model beside it."""

    @property
    def model(self) -> Transformer:
        """Whose weights draw."""

    def forward(self, call: Call) -> Tensor:
        """`call(model)` under the run's precision."""


def dealt(ranks: Meeting, count: int, group: int, work: Work) -> tuple[list[Answer], float]:
    """Every rank's part of `count` requests, put together in their order, and the most seconds; collective.

    Args:
        ranks: that share the work.
        count: of requests.
        group: how many of them, one after another, are to one prompt and stay together.
        work: what a rank does.

    Raises:
        InterruptedRunError: the server that draws is gone for one of them.
    """
    size, lost = ranks.world_size, ""
    own = [at for at in range(count) if at // group % size == ranks.rank]
    try:
        answers, seconds = work(own)
    except LostError as error:
        own, answers, seconds, lost = [], [], 0.0, str(error)
    parts = ranks.gather((dict(zip(own, answers, strict=True)), seconds, lost))
    require_server([part[2] for part in parts])
    return [parts[at // group % size][0][at] for at in range(count)], max(part[1] for part in parts)
