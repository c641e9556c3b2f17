"""What `pack` is told about several sources, as a mixture of their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmctl.config.errors import ConfigError, InputError, Problem
from llmctl.config.tokens import PackConfig
from llmctl.config.weights import unknown_sources, weight_problems
from llmctl.pipeline.job import Job
from llmctl.store.artifact import Artifact
from llmctl.tokens.fit import Layout
from llmctl.tokens.mixture import PARTS, Mixture, Stage, row_shares

SOURCES = "sources"


def check_weights(config: PackConfig, names: Sequence[str]) -> None:
    """Whether weights name the sources, and stages nothing else.

    Raises:
        ConfigError: a weight is missing, or names no source.
    """
    if (config.weights or config.stages) and len(names) < 2:
        raise ConfigError([Problem("weights", "there is one source", "name several: llmctl pack a=0.7 b=0.3")])
    problems = weight_problems(config.weights, names)
    for number, stage in enumerate(config.stages):
        problems += unknown_sources(f"stages.{number}.weights", stage.weights, names)
    if problems:
        raise ConfigError(problems)


def mixture_of(config: PackConfig, sources: Mapping[str, Artifact], layouts: Sequence[Layout]) -> Mixture:
    """The mixture of the training rows; without weights each source has its size, and all end together.

    Raises:
        InputError: a source that is to be taken has no training rows.
    """
    rows = [layout.rows for layout in layouts]
    tokens = [int(layout.length.sum()) for layout in layouts]
    sizes = dict(zip(sources, map(float, tokens), strict=True))
    wanted = [(stage.tokens, stage.weights) for stage in config.stages] or [(None, config.weights or sizes)]
    stages: list[Stage] = []
    for length, weights in wanted:
        for name, count in zip(sources, rows, strict=True):
            if weights.get(name) and not count:
                hint = "lower heldout_fraction, or leave the source out"
                raise InputError(f"every document of {sources[name].ref} is held out", hint=hint)
        shares = row_shares([weights.get(name, 0.0) for name in sources], rows, tokens)
        stages.append(Stage(None if length is None else _rows_of(length, shares, rows, tokens), shares))
    return Mixture(tuple(rows), tuple(stages))


def say_passes(job: Job[PackConfig], names: Sequence[str], mixture: Mixture) -> None:
    """Tell how often each source will have been seen when training has taken as many rows as there are."""
    total = sum(mixture.counts)
    seen = ", ".join(f"{name} {times:.2f}" for name, times in zip(names, mixture.passes(total), strict=True))
    job.progress.note(f"in {total:,} rows of training each source is seen so many times: {seen}")


def _rows_of(length: int, shares: Sequence[int], rows: Sequence[int], tokens: Sequence[int]) -> int:
    """The rows that hold about `length` tokens, at these shares; at least one."""
    each = sum(share * held / count for share, held, count in zip(shares, tokens, rows, strict=True) if share)
    return max(1, round(length * PARTS / each))
