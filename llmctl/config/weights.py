"""Weights of sources by name, as `mix` and `pack` are given them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from llmctl.config.errors import Problem


def unknown_sources(where: str, weights: Iterable[str], names: Sequence[str]) -> list[Problem]:
    """Weights that are of none of the sources `names`."""
    known = f"sources: {', '.join(names)}"
    return [Problem(f"{where}.{name}", "no such source", known) for name in weights if name not in names]


def weight_problems(weights: Mapping[str, float], names: Sequence[str]) -> list[Problem]:
    """What keeps `weights` from naming every source and nothing else; nothing where there are none at all."""
    missing = [name for name in names if weights and name not in weights]
    return unknown_sources("weights", weights, names) + [
        Problem(f"weights.{name}", "is missing", "give every source a weight, or none") for name in missing
    ]
