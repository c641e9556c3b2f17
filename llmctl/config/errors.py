"""Every error that a user can cause, each with its exit code (design §4).

A message says what went wrong, where, and how to mend it. Anything that is not an `LlmctlError` is a bug
and exits 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_OK = 0
EXIT_BUG = 1


class LlmctlError(Exception):
    """Base of all handled errors.

    Args:
        what: one line, what is wrong and where.
        hint: one line, how to mend it; printed below the message.
    """

    exit_code = EXIT_BUG

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.faults: tuple[str, ...] = ()  # where several are told as one: each, with its remedy

    def __str__(self) -> str:
        return self.what

    @property
    def one_line(self) -> str:
        """The message and its remedy on a single line, as receipts carry it."""
        text = f"{self.what} ({self.hint})" if self.hint else self.what
        return " ".join(text.split())


class UsageError(LlmctlError):
    """A wrong flag, configuration value or combination of them."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One fault in a configuration: where it is, what it is, how to mend it."""

    where: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.hint})" if self.hint else "")


class ConfigError(UsageError):
    """All faults of one configuration, reported together."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        faults = tuple(map(str, problems))
        super().__init__("; ".join(faults))
        self.faults = faults


class InputError(LlmctlError):
    """An input, a file or the store is missing, unreadable, damaged or of the wrong kind."""

    exit_code = 3


class ElsewhereError(InputError):
    """Another rank met what is wrong and says it better: told only where no rank does."""


class UpstreamError(LlmctlError):
    """The stage before this one in the pipe did not finish; nothing is published."""

    exit_code = 4


class IntegrityError(LlmctlError):
    """Stored bytes do not match what their manifest promises."""

    exit_code = 5


class GateError(LlmctlError):
    """A threshold that the user set was not met."""

    exit_code = 6


class LockedError(LlmctlError):
    """Another process holds what this one needs."""

    exit_code = 7


class InterruptedRunError(LlmctlError):
    """Stopped on request after saving its state; the same command resumes."""

    exit_code = 75


def together(errors: Sequence[LlmctlError]) -> LlmctlError:
    """One error that tells all of `errors`, which must not be empty; the exit code is the first one's."""
    if len(errors) == 1:
        return errors[0]
    faults = tuple(fault for error in errors for fault in error.faults or (error.one_line,))
    first = errors[0]
    whole = UsageError("; ".join(faults)) if isinstance(first, UsageError) else type(first)("; ".join(faults))
    whole.faults = faults
    return whole
