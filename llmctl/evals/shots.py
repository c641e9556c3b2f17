"""Examples before an item, drawn as lm-evaluation-harness (v0.4.13) draws them, or as nanochat does."""

from __future__ import annotations

import random
from collections.abc import Sequence

from llmctl.config.errors import InputError
from llmctl.config.tasks import FewshotConfig
from llmctl.evals.templates import Doc

HARNESS_SEED = 1234


class Shots:
    """Draws examples for one item after another. What is drawn depends on the order in which items come.

    Args:
        pool: what is drawn from.
        count: how many examples an item gets.
        config: the way of drawing.
        seed: of the random numbers.
        leaves_out: whether the pool holds the items themselves, so that each is left out of its own examples.
        task: for messages.

    Raises:
        InputError: the pool is too small.
    """

    def __init__(
        self, pool: Sequence[Doc], count: int, config: FewshotConfig, *, seed: int, leaves_out: bool, task: str
    ) -> None:
        needed = count + leaves_out if count else 0
        if len(pool) < needed:
            raise InputError(
                f"{task}: {count} examples are to be drawn from {len(pool)}",
                hint="give more examples, or fewer shots: --shots 0",
            )
        self._pool, self._count, self._leaves_out = list(pool), count, leaves_out
        self._first, self._by_item = config.sampler == "first_n", config.sampler == "by_item"
        self._seed, self._random = seed, random.Random(seed)  # noqa: S311 - the harness's own

    def draw(self, item: Doc, place: int) -> list[Doc]:
        """The examples of the next item, which has this place among all."""
        if not self._count:
            return []
        if self._by_item:
            places = [at for at in range(len(self._pool)) if at != place or not self._leaves_out]
            chance = random.Random(self._seed + place)  # noqa: S311 - nanochat's own
            return [self._pool[at] for at in chance.sample(places, self._count)]
        others = [doc for doc in self._pool if doc != item] if self._leaves_out else self._pool
        if self._first:
            return others[: self._count]
        if not self._leaves_out:
            return self._random.sample(self._pool, self._count)
        drawn = [doc for doc in self._random.sample(self._pool, self._count + 1) if doc != item][: self._count]
        return drawn if len(drawn) == self._count else self._random.sample(others, self._count)
