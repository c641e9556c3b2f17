"""Which resumable states of a run stay, written as `last:3,every:1000,best:1`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

PART = re.compile(r"^(last|every|best):([1-9][0-9]{0,8})$")


@dataclass(frozen=True)
class Keep:
    """A rule for what stays: the union of its parts.

    Attributes:
        last: the newest so many; at least 1, since a run resumes from it.
        every: those whose step is a multiple of this; 0 for none.
        best: the so many with the lowest held-out loss at the time.
    """

    last: int = 2
    every: int = 0
    best: int = 0

    @classmethod
    def parse(cls, text: str) -> Keep:
        """Read `last:3,every:1000,best:1`; what is left out is not kept, but for the newest two.

        Raises:
            ValueError: a part is not of that form, or comes twice.
        """
        values: dict[str, int] = {}
        for part in text.split(","):
            match = PART.match(part.strip())
            if match is None or match[1] in values:
                raise ValueError(f"{part.strip()!r} is not a part of last:N,every:N,best:N, each at most once")
            values[match[1]] = int(match[2])
        return cls(**values)

    def stay(self, states: Sequence[tuple[int, float | None]]) -> set[int]:
        """Steps of the states that stay, of (step, held-out loss or None) in order of steps."""
        steps = [step for step, _ in states]
        measured = sorted((loss, step) for step, loss in states if loss is not None)
        return {
            *steps[-self.last :],
            *(step for step in steps if self.every and step % self.every == 0),
            *(step for _, step in measured[: self.best]),
        }
