"""Figures of one item, by the rules of lm-evaluation-harness (v0.4.13).

A value is a number; for perplexities over words or bytes it is (log-likelihood, how many), and for what is drawn over
positions it is a tuple. An item gives one value for each (metric, filter) of its task; `scoring` makes figures of them.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from llmctl.config.tasks import FilterConfig, MetricConfig, TaskConfig
from llmctl.evals import math_answers, scoring
from llmctl.evals.filters import FIRST, each, filtered
from llmctl.evals.items import Item
from llmctl.evals.reasoning import Draw, Draws
from llmctl.evals.requests import Likely, Written

Value = float | tuple[float, ...]
Named = tuple[str, str]
"""(metric, filter); the filter is empty where there is a single way."""


@dataclass(frozen=True)
class Outcome:
    """What became of one item.

    Attributes:
        values: by (metric, filter).
        prediction: the likeliest choice; None where nothing is chosen.
        prediction_norm: the same per character.
        answers: by filter, what was taken from the generated texts.
        draws: where an item has several texts, or texts of a budget: each of them.
    """

    values: dict[Named, Value]
    prediction: int | None = None
    prediction_norm: int | None = None
    answers: dict[str, tuple[str, ...]] | None = None
    draws: Draws = field(default_factory=dict)

    def each_draw(self) -> Iterator[Draw]:
        """The draws, in the order of the requests."""
        return (draw for some in self.draws.values() for draw in some)


def outcome_of(config: TaskConfig, item: Item, answers: Sequence[Likely | Written]) -> Outcome:
    """The figures of one item.

    Args:
        config: its task.
        item: what was asked.
        answers: one for each of its requests.
    """
    likely = [answer for answer in answers if isinstance(answer, Likely)]
    written = [answer for answer in answers if isinstance(answer, Written)]
    if config.output_type == "multiple_choice":
        return _chosen(config, item, likely)
    if config.output_type == "loglikelihood":
        found: dict[str, Value] = {"acc": float(likely[0].is_greedy), "perplexity": likely[0].logprob}
        return Outcome({(metric.name, ""): found[metric.metric] for metric in config.metric_list})
    if config.output_type == "loglikelihood_rolling":
        return Outcome({(metric.name, ""): _rolling(metric, item, likely[0]) for metric in config.metric_list})
    return _generated(config, item, written)


def _chosen(config: TaskConfig, item: Item, likely: Sequence[Likely]) -> Outcome:
    count = len(item.choices)
    each_token = config.scored == "apart"
    values = [one.logprob / len(one.tokens) if each_token else one.logprob for one in likely[:count]]
    by_character = [value / len(choice) for value, choice in zip(values, item.choices, strict=True)]
    by_byte = [value / len(choice.encode()) for value, choice in zip(values, item.choices, strict=True)]
    probabilities = scoring.softmax(values)
    best, best_norm = scoring.best(values), scoring.best(by_character)
    found: dict[Named, Value] = {}
    for metric in config.metric_list:
        if metric.metric == "mc2":
            value: Value = math.fsum(probabilities[index] for index in item.right)
        elif metric.metric == "ece":
            value = (probabilities[best], float(best in item.right))
        elif metric.metric == "acc_mutual_info":
            gained = [one - alone.logprob for one, alone in zip(values, likely[count:], strict=True)]
            value = float(scoring.best(gained) in item.right)
        else:
            way = {"acc": values, "acc_norm": by_character, "acc_bytes": by_byte}[metric.metric]
            value = float(scoring.best(way) in item.right)
        found[metric.name, ""] = value
    return Outcome(found, best, best_norm)


def _rolling(metric: MetricConfig, item: Item, likely: Likely) -> Value:
    if metric.metric == "loss_by_position":
        return likely.tokens
    units = len(re.split(r"\s+", item.original)) if metric.metric == "word_perplexity" else len(item.original.encode())
    return likely.logprob, float(units)


def _generated(config: TaskConfig, item: Item, written: Sequence[Written]) -> Outcome:
    texts = [one.text for one in written[-config.repeats :]]  # of the largest budget
    ways: Sequence[FilterConfig] = config.filter_list or (FIRST,)
    answers = {way.name: tuple(filtered(texts, way)) for way in ways}
    found: dict[Named, Value] = {}
    for metric in config.metric_list:
        if metric.metric == "pass":
            continue  # counted where the texts have been run
        same = _comparison(metric)
        for way in ways:
            first = answers[way.name][0]
            found[metric.name, way.name if config.filter_list else ""] = float(
                any(same(first, target) for target in item.targets)
            )
    return Outcome(found, answers=answers, draws=_draws(config, item, written, ways[0]))


def _draws(config: TaskConfig, item: Item, written: Sequence[Written], way: FilterConfig) -> Draws:
    """Every text with its answer, by the task's first metric and first filter; nothing of a single plain text."""
    if config.repeats == 1 and not config.budget.tokens:
        return {}
    metric, texts = config.metric_list[0], [one.text for one in written]
    if metric.metric == "pass":  # right or not is known when they have been run, and no two programs are one answer
        found = [Draw(one.tokens, None) for one in written]
    else:
        same, fallbacks = _comparison(metric), {step.fallback for step in way.filter if step.function == "regex"}
        found = [
            Draw(
                one.tokens,
                None if answer in fallbacks else answer,
                float(any(same(answer, target) for target in item.targets)),
            )
            for one, answer in zip(written, each(texts, way), strict=True)
        ]
    budgets, count = config.budget.tokens or (0,), config.repeats
    return {budget: found[at * count : (at + 1) * count] for at, budget in enumerate(budgets)}


def _comparison(metric: MetricConfig) -> Callable[[str, str], bool]:
    if metric.metric == "math_equal":
        return math_answers.equal
    if metric.metric == "math_verify":
        return math_answers.verified
    return lambda answer, target: _plain(answer, metric) == _plain(target, metric)


def _plain(text: str, metric: MetricConfig) -> str:
    """A text as exact_match compares it."""
    for pattern in metric.regexes_to_ignore:
        text = re.sub(pattern, "", text)
    text = text.lower() if metric.ignore_case else text
    dropped = string.punctuation * metric.ignore_punctuation + string.digits * metric.ignore_numbers
    text = text.translate(str.maketrans("", "", dropped))
    # numpy compares texts without what pads them, and the harness compares arrays of numpy.
    return text.rstrip("\0")


def loss_curve(values: Sequence[Sequence[float]]) -> list[tuple[int, int, float, int]]:
    """(first place, last place, nats per token, tokens) in widths of powers of two, over the tokens of all items."""
    longest = max(map(len, values), default=0)
    edges = [0, *(1 << power for power in range(longest.bit_length()))]
    curve = []
    for first, end in zip(edges, [*edges[1:], longest], strict=True):
        inside = np.concatenate([np.asarray(one[first:end]) for one in values])
        if inside.size:
            curve.append((first, min(end, longest) - 1, float(-inside.mean()), int(inside.size)))
    return curve
