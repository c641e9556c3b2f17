"""The arithmetic of multiple choice by log-likelihood, with the rules of lm-evaluation-harness (v0.4).

`acc` takes the choice with the largest log p(choice | context). `acc_norm` divides each log-likelihood by the
choice's length in characters first, white space around it not counted. Ties go to the first choice. The standard
error of a mean over questions is s / sqrt(n), s being the sample standard deviation (n - 1 below).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Estimate:
    """A figure, how sure it is, and what it is over.

    Attributes:
        value: the figure itself.
        n: how many questions or targets it is over.
        stderr: its standard error; None where none is defined (a single question, a perplexity).
    """

    value: float
    n: int
    stderr: float | None = None

    def as_json(self) -> dict[str, float | int | None]:
        """The form in results.json."""
        return {"value": self.value, "stderr": self.stderr, "n": self.n}


def mean(values: Sequence[float]) -> Estimate:
    """The mean of `values` (at least one) with its standard error."""
    n = len(values)
    centre = math.fsum(values) / n
    if n == 1:
        return Estimate(centre, n)
    variance = math.fsum((value - centre) ** 2 for value in values) / (n - 1)
    return Estimate(centre, n, math.sqrt(variance / n))


def best(log_likelihoods: Sequence[float]) -> int:
    """Index of the most likely choice; the first of equals."""
    return max(range(len(log_likelihoods)), key=lambda index: (log_likelihoods[index], -index))


def best_by_characters(log_likelihoods: Sequence[float], choices: Sequence[str]) -> int:
    """Index of the choice with the largest log-likelihood per character of its text; the first of equals."""
    return best([value / len(choice.strip()) for value, choice in zip(log_likelihoods, choices, strict=True)])


def chance(counts: Sequence[int]) -> float:
    """The accuracy of guessing: the mean of 1/choices over questions."""
    return math.fsum(1 / count for count in counts) / len(counts)


def split_pair(context: str, continuation: str, encode: Encode) -> tuple[list[int], list[int]]:
    """Token ids of a context and its continuation, as the harness splits them.

    White space at the end of the context belongs to the continuation, because a tokenizer that puts the space in
    front of a word would otherwise never see it there. The two are encoded together and cut at the length of the
    context encoded alone, so the continuation's ids are those it has after this context.

    Args:
        context: text before; may be empty.
        continuation: text whose likelihood is wanted.
        encode: text to ids, without special ids.
    """
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    context_ids = encode(context)
    return context_ids, encode(context + continuation)[len(context_ids) :]
