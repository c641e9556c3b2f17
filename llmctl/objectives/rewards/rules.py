"""Rewards that are rules on a text: pure functions, each of one answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from llmctl.config.rewards import (
    ExactReward,
    JsonReward,
    LengthReward,
    NumberReward,
    RepetitionReward,
)

NUMBER = re.compile(r"[-+]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\$?\.\d+")


@dataclass(frozen=True)
class Sample:
    """An answer, and what it is judged by.

    Attributes:
        prompt: as the data has it.
        completion: text of the answer.
        answer: what is wanted; None where the data does not say.
        tokens: length of the answer.
        fields: the other columns of the prompt's row.
        ids: of the prompt and the answer, for a reward model.
    """

    prompt: str
    completion: str
    answer: str | None = None
    tokens: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)
    ids: tuple[int, ...] = ()


class NoRewardError(Exception):
    """The reward of this answer cannot be told; the text says why."""


def wanted(sample: Sample) -> str:
    """What the data wants.

    Raises:
        NoRewardError: it does not say.
    """
    if sample.answer is None:
        raise NoRewardError("the prompt's row has no answer")
    return sample.answer


def exact(sample: Sample, config: ExactReward) -> float:
    """1 where the texts are the same."""
    said, right = sample.completion.strip(), wanted(sample).strip()
    if config.ignore_case:
        said, right = said.casefold(), right.casefold()
    return float(said == right)


def number(sample: Sample, config: NumberReward) -> float:
    """1 where both end in the same number.

    Raises:
        NoRewardError: the wanted answer holds none. An answer without one is wrong.
    """
    del config
    right = last_number(wanted(sample))
    if right is None:
        raise NoRewardError(f"the wanted answer holds no number: {sample.answer!r}")
    return float(last_number(sample.completion) == right)


def last_number(text: str) -> Decimal | None:
    """The first number behind the last `####`, as GSM8K marks answers; without a mark, the last number of the text.

    A text that has the mark and no number behind it has none. (nanochat takes the first `####`, verl looks at the last
    300 characters alone.)
    """
    before, mark, behind = text.rpartition("####")
    del before
    found = NUMBER.findall(behind if mark else text)
    if not found:
        return None
    try:
        return Decimal((found[0] if mark else found[-1]).replace(",", "").replace("$", ""))
    except InvalidOperation:
        return None


def is_json(sample: Sample, config: JsonReward) -> float:
    """1 where the answer parses, and has the keys."""
    try:
        value = json.loads(sample.completion, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return 0.0
    return float(not config.keys or (isinstance(value, dict) and all(key in value for key in config.keys)))


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def length(sample: Sample, config: LengthReward) -> float:
    """Between 0 and -1."""
    return -min(1.0, max(0.0, (sample.tokens - config.free) / (config.most - config.free)))


def repetition(sample: Sample, config: RepetitionReward) -> float:
    """Between 0 and -1: different n-grams over all of them, less 1."""
    words = sample.completion.split()
    grams = [tuple(words[at : at + config.ngram_words]) for at in range(len(words) - config.ngram_words + 1)]
    return len(set(grams)) / len(grams) - 1 if grams else 0.0
