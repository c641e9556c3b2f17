"""The arithmetic of figures and their standard errors, with the rules of lm-evaluation-harness (v0.4.13).

Ties go to the first choice. The standard error of a mean over items is s / sqrt(n), s being the sample standard
deviation (n - 1 below). A perplexity has no such formula: its error is that of figures over items drawn with
replacement, in blocks of 1,000 draws, each with the random numbers of its own number as seed. Perplexities over words
or bytes have none. That of a group weighted by size is pooled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def softmax(log_likelihoods: Sequence[float]) -> list[float]:
    """The share of each choice in what all have together."""
    most = max(log_likelihoods)
    weights = [math.exp(value - most) for value in log_likelihoods]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def exponential(value: float) -> float:
    """exp(value); infinite where that overflows, as with a text of thousands of characters that counts as one word."""
    return math.exp(value) if value < 700 else math.inf


def perplexity(log_likelihoods: Sequence[float], draws: int) -> Estimate:
    """exp(-mean), with the error of figures over `draws` samples."""
    value = exponential(-math.fsum(log_likelihoods) / len(log_likelihoods))
    error = bootstrap(log_likelihoods, lambda means: np.exp(-means), draws)
    return Estimate(value, len(log_likelihoods), error)


def weighted(pairs: Sequence[tuple[float, ...]]) -> float:
    """The sum of log-likelihoods over the sum of their units."""
    return math.fsum(value for value, _ in pairs) / math.fsum(units for _, units in pairs)


def bootstrap(
    values: Sequence[float], figure: Callable[[NDArray[np.float64]], NDArray[np.float64]], draws: int
) -> float | None:
    """Sample standard deviation of a figure of the mean over samples with replacement; None of too few.

    The places are those that Python's `random.Random(block).choices` takes: numpy's Mersenne Twister, seeded with a
    list of the one number, gives the same numbers.

    Args:
        values: one for each item.
        figure: from means to figures.
        draws: how many samples; whole blocks of them are taken.
    """
    n, block = len(values), min(1000, draws)
    if n < 2 or draws < 2:
        return None
    exact = np.asarray(values, dtype=np.float64)
    figures = []
    for seed in range(draws // block):
        numbers = np.random.RandomState([seed]).random_sample(block * n)  # Python's own numbers
        figures.append(figure(exact[(numbers * n).astype(np.int64)].reshape(block, n).mean(axis=1)))
    return float(np.std(np.concatenate(figures), ddof=1))


def pooled(estimates: Sequence[Estimate], *, by_size: bool) -> Estimate:
    """One figure of several means: weighted by their items, or as the plain mean of them.

    Its error is pooled from theirs; None where one has none.
    """
    sizes = [one.n for one in estimates]
    total = sum(sizes)
    errors = [one.stderr for one in estimates if one.stderr is not None]
    complete = len(errors) == len(estimates)
    if not by_size:
        value = math.fsum(one.value for one in estimates) / len(estimates)
        spread = math.sqrt(math.fsum(error**2 for error in errors)) / len(estimates)
        return Estimate(value, total, spread if complete else None)
    value = math.fsum(one.value * one.n for one in estimates) / total
    if not complete or total == len(sizes):
        return Estimate(value, total)
    variance = math.fsum((size - 1) * error**2 * size for size, error in zip(sizes, errors, strict=True))
    return Estimate(value, total, math.sqrt(variance / (total - len(sizes)) / total))


CALIBRATION_BINS = 10


def calibration(pairs: Sequence[tuple[float, ...]]) -> tuple[float, list[tuple[float, float, int]]]:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599) of (confidence, right) pairs, and its bins.

    Bins are of equal width: (mean confidence, share that is right, items) of each that is not empty.
    """
    bins: dict[int, list[tuple[float, ...]]] = {}
    for pair in pairs:
        bins.setdefault(min(int(pair[0] * CALIBRATION_BINS), CALIBRATION_BINS - 1), []).append(pair)
    table = []
    for _, inside in sorted(bins.items()):
        confidence, right = (math.fsum(column) / len(inside) for column in zip(*inside, strict=True))
        table.append((confidence, right, len(inside)))
    error = math.fsum(abs(confidence - right) * n for confidence, right, n in table) / len(pairs)
    return error, table


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
