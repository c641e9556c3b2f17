"""From generated texts to the answers in them, with the filters of lm-evaluation-harness (v0.4.13)."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence

from llmctl.config.tasks import FilterConfig, FilterStep

CHOOSING = ("take_first", "take_first_k", "majority_vote")
FIRST = FilterConfig(name="none", filter=(FilterStep(function="take_first"),))


def filtered(texts: Sequence[str], config: FilterConfig) -> list[str]:
    """The answers that are left of an item's texts."""
    found = list(texts)
    for step in config.filter:
        found = _apply(step, found)
    return found


def each(texts: Sequence[str], config: FilterConfig) -> list[str]:
    """The answer in every text, without choosing among them."""
    found = list(texts)
    for step in config.filter:
        if step.function not in CHOOSING:
            found = _apply(step, found)
    return found


def _apply(step: FilterStep, texts: list[str]) -> list[str]:
    if step.function == "take_first":
        return texts[:1]
    if step.function == "take_first_k":
        return texts[: step.k]
    if step.function == "majority_vote":  # of equals the one that came first, as Counter keeps them
        return [Counter(texts).most_common(1)[0][0]]
    one_by_one = {
        "regex": lambda text: _matched(step, text),
        "lowercase": str.lower,
        "uppercase": str.upper,
        "remove_whitespace": str.strip,
        "math": between_dollars,
    }
    return [one_by_one[step.function](text) for text in texts]


@functools.lru_cache(maxsize=256)
def _pattern(source: str) -> re.Pattern[str]:
    return re.compile(source)


def _matched(step: FilterStep, text: str) -> str:
    """The match that the step selects, of several groups the first that is not empty; its fallback where none is."""
    matches = _pattern(step.regex_pattern).findall(text)
    if not -len(matches) <= step.group_select < len(matches):
        return step.fallback
    match = matches[step.group_select]
    if isinstance(match, tuple):
        match = next((group for group in match if group), step.fallback)
    return str(match).strip()


def between_dollars(text: str) -> str:
    """What stands between the first and the last dollar sign; all of it where there are not two."""
    first, last = text.find("$"), text.rfind("$")
    return text[first + 1 : last] if first != last else text
