"""Generated programs that are run against a test: what the sandbox is asked, and what its verdicts are worth."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmctl.config.tasks import CheckConfig
from llmctl.evals.items import Item
from llmctl.evals.sandbox.verify import Program
from llmctl.evals.templates import Field


def programs_of(config: CheckConfig, task: str, item: Item, answers: Sequence[str]) -> list[Program]:
    """What is to be run for one item, an answer each."""
    source = Field("check.program", config.program, task)
    test, entry, setup, reference = (
        Field(f"check.{name}", given, task).text(item.doc, item.id) if (given := getattr(config, name)) else ""
        for name in ("test", "entry_point", "setup", "reference")
    )
    return [
        Program(source.text(item.doc, item.id, completion=answer), test, entry, setup, reference, config.timeout_s)
        for answer in answers
    ]


def passes(right: int, tried: int, k: int) -> float:
    """pass@k: the chance that one of k answers is right, without bias (Chen et al. 2021, arXiv:2107.03374)."""
    if tried - right < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / n for n in range(tried - right + 1, tried + 1))
