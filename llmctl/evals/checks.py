"""Generated programs that are run against a test: what is handed to the verifier of a task's `check.kind`, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from llmctl.config.errors import UsageError
from llmctl.config.tasks import CheckConfig
from llmctl.evals.items import Item
from llmctl.evals.templates import Field
from llmctl.pipeline.stage import load


@dataclass(frozen=True)
class Program:
    """One program and its test.

    Attributes:
        source: what the model wrote, with what belongs before it.
        test: what it must pass.
        entry_point: the function that is tested; empty where the test says it.
        setup: trusted source that the test needs.
        reference: a right program, which tells what functions and classes are the program's; may be empty.
        timeout_s: how long it may run.
    """

    source: str
    test: str
    entry_point: str
    setup: str
    reference: str
    timeout_s: float


class Verifier(Protocol):
    """Runs programs where they can do no harm."""

    def __call__(self, programs: Sequence[Program]) -> list[bool | None]:
        """Whether each passes, in order; None where it could not be run, which is neither right nor wrong.

        Raises:
            LlmctlError: nothing can be run here, and why.
        """
        ...


VERIFIERS: Mapping[str, str] = {"code": "llmctl.evals.sandbox.verify:verify"}
"""`module:function` of the verifier of each kind."""


def verifier_of(kind: str) -> Verifier:
    """The verifier of a kind.

    Raises:
        UsageError: this build has none.
    """
    try:
        found: Verifier = load(VERIFIERS[kind])
    except ModuleNotFoundError as error:
        raise UsageError(
            f"nothing here can check {kind}: {error}", hint="leave out the tasks that run programs"
        ) from error
    return found


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
