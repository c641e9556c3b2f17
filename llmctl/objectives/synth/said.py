"""What a teacher is asked and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmctl.config.synth import SynthConfig
from llmctl.objectives.asked import Message


@dataclass(frozen=True)
class Ask:
    """One prompt, and a seed for each answer that is wanted."""

    messages: Sequence[Message]
    seeds: Sequence[int]


@dataclass(frozen=True)
class Said:
    """One answer.

    Attributes:
        text: of the answer.
        tokens: that it took.
        reward: what its rewards add up to; 0 where there are none.
        fault: why it is dropped; empty where it passes.
        missing: why it has no reward, or why a server refused to answer.
        asked: tokens of the prompt.
    """

    text: str
    tokens: int
    reward: float = 0.0
    fault: str = ""
    missing: str = ""
    asked: int = 0


Dropped = list[tuple[str, Said]]
"""Answers that are not kept, each with the reason."""


def chosen(said: Sequence[Said], config: SynthConfig) -> tuple[list[Said], Dropped]:
    """The answers to one prompt that are kept, in the order of preference, and why the others are not."""
    passing, dropped = distinct(said)
    if config.prefer == "best":
        passing.sort(key=lambda one: -one.reward)
    elif config.prefer == "shortest":
        passing.sort(key=lambda one: one.tokens)
    return passing[: config.keep], [*dropped, *(("surplus", one) for one in passing[config.keep :])]


def furthest(said: Sequence[Said], least_margin: float) -> tuple[list[Said], Dropped]:
    """The answers of most and of least reward, of equal ones the first; none where they differ too little."""
    passing, dropped = distinct(said)
    if not passing:
        return [], dropped
    best, worst = (pick(passing, key=lambda one: one.reward) for pick in (max, min))
    if best.reward - worst.reward <= least_margin:
        return [], [*dropped, *(("alike", one) for one in passing)]
    others = (one for one in passing if one is not best and one is not worst)
    return [best, worst], [*dropped, *(("surplus", one) for one in others)]


def distinct(said: Sequence[Said]) -> tuple[list[Said], Dropped]:
    """Those without a fault, of equal texts the first."""
    dropped: Dropped = [(one.fault, one) for one in said if one.fault]
    passing: dict[str, Said] = {}
    for one in said:
        if not one.fault and passing.setdefault(one.text, one) is not one:
            dropped.append(("repeated", one))
    return list(passing.values()), dropped
