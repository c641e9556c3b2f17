"""What the server asks of an engine, be it ours or another."""

from __future__ import annotations

from typing import Protocol

from llmctl.inference.engine import Deliver
from llmctl.inference.request import Constraint, Request
from llmctl.inference.scheduler import Counts
from llmctl.tokens.tokenizer import Tokenizer


class Asked(Protocol):
    """A request that an engine has taken."""

    def cancel(self) -> object:
        """Stop generating; the last event then says `cancelled`. Harmless when all is done."""
        ...


class Backend(Protocol):
    """An engine; `llmctl.inference.engine.Engine` says what each member means."""

    context: int

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        ...

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        ...

    @property
    def running(self) -> int:
        """Sequences that are being generated."""
        ...

    @property
    def waiting(self) -> int:
        """Sequences that wait."""
        ...

    @property
    def counts(self) -> Counts:
        """What happened since the engine began."""
        ...

    @property
    def cache_usage(self) -> float:
        """Share of the KV cache in use."""
        ...

    def submit(self, request: Request, deliver: Deliver) -> Asked:
        """Take a request; its events go to `deliver`, on a thread of the engine."""
        ...

    def check_constraint(self, constraint: Constraint) -> None:
        """Raise a `UsageError` where the form cannot be compiled."""
        ...

    def close(self) -> None:
        """End."""
        ...
