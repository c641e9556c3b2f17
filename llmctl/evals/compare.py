"""Two evaluations of the same items, item by item: what differs, and whether that is more than chance."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.parquet as pq

from llmctl.config.errors import InputError
from llmctl.config.tasks import AGGREGATIONS
from llmctl.evals import scoring
from llmctl.evals.results import CHECKPOINT
from llmctl.store.artifact import Artifact

Key = tuple[str, str, str]
"""Task, part and id of an item."""


@dataclass(frozen=True)
class Difference:
    """One figure of two evaluations over the items that both have.

    Attributes:
        figure: `task.metric`.
        first, second: means over those items.
        difference: second less first.
        stderr: of the mean of the differences; None of one item.
        p: chance of a difference at least as large if neither were better: exact (McNemar, by the binomial) where items
            are right or wrong, else from the normal distribution; None where there is no error.
        gained, lost: items on which the second alone, or the first alone, does better.
        n: items that both have.
        left_out: items that one of them lacks.
        other_prompts: items that were asked with other prompts, such as with other examples.
    """

    figure: str
    first: float
    second: float
    difference: float
    stderr: float | None
    p: float | None
    gained: int
    lost: int
    n: int
    left_out: int
    other_prompts: int

    def as_json(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)


def compared(first: Artifact, second: Artifact) -> list[Difference]:
    """Every figure that is a mean over items, in the order of the first.

    Raises:
        InputError: an artifact has no samples, or they have no item in common.
    """
    mine, theirs = _samples(first), _samples(second)
    common = [key for key in mine if key in theirs]
    if not common:
        raise InputError(f"{first.ref} and {second.ref} have no item in common", hint="evaluate both on the same data")
    named: dict[tuple[str, str], list[tuple[float, float, bool]]] = {}
    for key in common:
        one, other = mine[key], theirs[key]
        for metric, value in one["scores"].items():
            is_number = isinstance(value, int | float) and isinstance(other["scores"].get(metric), int | float)
            if is_number and metric.partition(",")[0] not in AGGREGATIONS:
                pair = (float(value), float(other["scores"][metric]), one["prompt"] != other["prompt"])
                named.setdefault((key[0], metric), []).append(pair)
    tasks = {task for task, _ in named}
    apart = {task: sum(key[0] == task for key in mine.keys() ^ theirs.keys()) for task in tasks}
    return [_difference(f"{task}.{metric}", pairs, apart[task]) for (task, metric), pairs in named.items()]


def _samples(artifact: Artifact) -> dict[Key, dict[str, Any]]:
    paths = [path for path in artifact.files(suffix=".parquet") if path.name.startswith("samples-")]
    if not paths:
        raise InputError(f"{artifact.ref} has no samples", hint="evaluate on --tasks or --choices")
    columns = ["model", "task", "part", "id", "prompt", "scores", "skipped"]
    rows = [row for path in paths for row in pq.read_table(path, columns=columns).to_pylist()]
    return {
        (row["task"], row["part"], row["id"]): {**row, "scores": json.loads(row["scores"])}
        for row in rows
        if row["model"] == CHECKPOINT and not row["skipped"]
    }


def _difference(figure: str, pairs: Sequence[tuple[float, float, bool]], left_out: int) -> Difference:
    first, second = (scoring.mean([pair[place] for pair in pairs]).value for place in (0, 1))
    apart = scoring.mean([other - one for one, other, _ in pairs])
    gained, lost = sum(other > one for one, other, _ in pairs), sum(other < one for one, other, _ in pairs)
    is_binary = all({one, other} <= {0.0, 1.0} for one, other, _ in pairs)
    p = mcnemar(gained, lost) if is_binary else normal(apart.value, apart.stderr)
    changed = sum(differs for _, _, differs in pairs)
    return Difference(figure, first, second, apart.value, apart.stderr, p, gained, lost, len(pairs), left_out, changed)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided chance of so uneven a split of the items on which two models differ, if each were a fair coin."""
    n, least = gained + lost, min(gained, lost)
    if n == 0:
        return 1.0
    tail = math.fsum(math.exp(_log_binomial(n, k) - n * math.log(2)) for k in range(least + 1))
    return min(1.0, 2 * tail)


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def normal(difference: float, stderr: float | None) -> float | None:
    """Two-sided chance of a difference of so many standard errors."""
    if stderr is None or (stderr == 0 and difference == 0):
        return None
    return 0.0 if stderr == 0 else math.erfc(abs(difference) / stderr / math.sqrt(2))


def as_markdown(names: tuple[str, str], differences: Sequence[Difference]) -> str:
    """The differences as a table."""
    lines = [
        f"| figure | {names[0]} | {names[1]} | difference | ± stderr | p | better · worse | items |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in differences:
        cells: Mapping[str, float | None] = {"± ": one.stderr, "p": one.p}
        error, p = ("" if value is None else f"{value:.4f}" for value in cells.values())
        lines.append(
            f"| {one.figure} | {one.first:.4f} | {one.second:.4f} | {one.difference:+.4f} | {error} | {p} | "
            f"{one.gained} · {one.lost} | {one.n} |"
        )
    return "\n".join(lines) + "\n"
