"""A rollout by several ranks: each asks and judges for whole groups, and all of them know all answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmctl.objectives.rollouts import Answer
from llmctl.objectives.served import LostError, require_server
from llmctl.train.strategy import Strategy

Work = Callable[[Sequence[int]], tuple[list[Answer], float]]
"""The judged answers to some of the requests, by number, and the seconds that drawing them took."""


def dealt(strategy: Strategy, count: int, group: int, work: Work) -> tuple[list[Answer], float]:
    """Every rank's part of `count` requests, put together in their order, and the most seconds; collective.

    Args:
        strategy: whose ranks share the work.
        count: of requests.
        group: how many of them, one after another, are to one prompt and stay together.
        work: what a rank does.

    Raises:
        InterruptedRunError: the server that draws is gone for one of them.
    """
    ranks, lost = strategy.world_size, ""
    own = [at for at in range(count) if at // group % ranks == strategy.rank]
    try:
        answers, seconds = work(own)
    except LostError as error:
        own, answers, seconds, lost = [], [], 0.0, str(error)
    parts = strategy.gather((dict(zip(own, answers, strict=True)), seconds, lost))
    require_server([part[2] for part in parts])
    return [parts[at // group % ranks][0][at] for at in range(count)], max(part[1] for part in parts)
