"""What more tokens buy: several texts of an item, by each way to choose among them, and texts of several budgets.

- `vote`: the commonest answer (self-consistency, Wang et al. 2022, arXiv:2203.11171).
- `best`: the answer of the text that the reward model scores highest (best of n).
- `weighted`: the answer whose texts have the most weight, each exp(score), which is the odds that a reward model
  learns (Bradley-Terry); only differences between the scores of one item count.
- `oracle_pass`: right if any text is. Nothing that lacks the right answers can choose so: it bounds the others. It is
  the share over all choices of n among the texts of an item, as pass@k is.
- `first`: the only text, where there are several budgets.

A text without an answer has no vote while others have one. Of equals the earliest counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llmctl.config.tasks import TaskConfig
from llmctl.evals import scoring
from llmctl.evals.checks import passes
from llmctl.evals.scoring import Estimate


@dataclass
class Draw:
    """One text of an item.

    Attributes:
        tokens: that the model wrote.
        answer: what was taken from it; None where it holds none.
        right: 1 or 0; None where there is no verdict (yet).
        score: of the reward model; None without one.
    """

    tokens: int
    answer: str | None
    right: float | None = None
    score: float | None = None

    def as_json(self, budget: int) -> dict[str, Any]:
        """Its fields, and its budget."""
        return {"budget": budget or None, **asdict(self)}


Draws = Mapping[int, Sequence[Draw]]
"""The texts of one item, by budget in tokens; 0 where there is none."""


@dataclass(frozen=True)
class Spent:
    """What one way of choosing makes of so many tokens.

    Attributes:
        method: how the answer is chosen.
        texts: of each item.
        budget: most tokens of one text; 0 for the task's own.
        tokens: of an item, all its texts together; the mean over items.
        share: that is right.
    """

    method: str
    texts: int
    budget: int
    tokens: float
    share: Estimate

    @property
    def name(self) -> str:
        """What its figure is called."""
        return f"{self.method}@{self.texts}" + (f",{self.budget}_tokens" if self.budget else "")

    def as_json(self) -> dict[str, Any]:
        """Its fields, those of the share among them."""
        return {
            "method": self.method,
            "texts": self.texts,
            "budget": self.budget or None,
            "tokens": self.tokens,
            **self.share.as_json(),
        }


def figure_names(task: TaskConfig, *, has_scorer: bool) -> list[str]:
    """What the figures of a task's ways of choosing are called, as far as its file tells."""
    votes = all(metric.metric != "pass" for metric in task.metric_list[:1])
    methods = [
        *(["vote"] if votes else []),
        *(["best"] if has_scorer else []),
        *(["weighted"] if has_scorer and votes else []),
        "oracle_pass",
    ]
    if task.repeats == 1:
        methods = ["first"] if task.budget.tokens else []
    return [
        Spent(method, count, budget, 0.0, Estimate(0.0, 0)).name
        for budget in task.budget.tokens or (0,)
        for method in methods
        for count in _counts(task.repeats)
    ]


def _counts(longest: int) -> list[int]:
    """Powers of two, and all."""
    return sorted({*(1 << power for power in range(longest.bit_length())), longest} - {0})


def spent(items: Sequence[Draws]) -> list[Spent]:
    """Every way of choosing, at powers of two and at all texts; texts without a verdict are no texts."""
    table: list[Spent] = []
    for budget in items[0] if items else ():
        judged = [[draw for draw in item[budget] if draw.right is not None] for item in items]
        for method, right in _ways(judged).items():
            for count in _counts(min(map(len, judged))):
                tokens = math.fsum(draw.tokens for item in judged for draw in item[:count]) / len(judged)
                share = scoring.mean([right(item, count) for item in judged])
                table.append(Spent(method, count, budget, tokens, share))
    return table


Right = Callable[[Sequence[Draw], int], float]


def _ways(items: Sequence[Sequence[Draw]]) -> dict[str, Right]:
    """The ways of choosing that these texts allow."""
    if max(map(len, items), default=0) < 2:
        return {"first": lambda draws, _: draws[0].right or 0.0}
    ways: dict[str, Right] = {}
    scored = all(draw.score is not None for item in items for draw in item)
    if any(draw.answer is not None for item in items for draw in item):
        ways["vote"] = lambda draws, count: _elected(draws[:count], [1.0] * count)
    if scored:
        ways["best"] = _best
    if scored and "vote" in ways:
        ways["weighted"] = lambda draws, count: _elected(draws[:count], _weights(draws[:count]))
    ways["oracle_pass"] = lambda draws, count: passes(sum(draw.right == 1 for draw in draws), len(draws), count)
    return ways


def _elected(draws: Sequence[Draw], weights: Sequence[float]) -> float:
    """Whether the answer with the most weight is right."""
    held: dict[str, float] = {}
    for draw, weight in zip(draws, weights, strict=True):
        if draw.answer is not None:
            held[draw.answer] = held.get(draw.answer, 0.0) + weight
    if not held:
        return draws[0].right or 0.0
    winner = max(held, key=lambda answer: held[answer])
    return next(draw.right for draw in draws if draw.answer == winner) or 0.0


def _best(draws: Sequence[Draw], count: int) -> float:
    return max(draws[:count], key=lambda draw: -math.inf if draw.score is None else draw.score).right or 0.0


def _weights(draws: Sequence[Draw]) -> list[float]:
    """exp(score), as shares of the item's texts."""
    return scoring.softmax([draw.score or 0.0 for draw in draws])
