"""What is told about an exception: its type, its message, and the line of the code that raised it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

PROGRAM, TESTS, SETUP = "<program>", "<tests>", "<setup>"  # file names of compiled code
_TYPE_CHARACTERS, _MESSAGE_CHARACTERS = 100, 500


@dataclass(frozen=True)
class Trouble:
    """An exception in words.

    Attributes:
        type: name of its type.
        message: its text, cut.
        line: of the code of interest; None where that did not take part.
    """

    type: str
    message: str
    line: int | None

    def as_json(self) -> dict[str, Any]:
        """The form on the wire."""
        return asdict(self)


def describe(error: BaseException, filename: str) -> Trouble:
    """The error in words.

    Args:
        error: as it was caught.
        filename: the code of interest; the line is that of its innermost frame.
    """
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 (a program's own __str__)
        message = ""
    return Trouble(type(error).__name__[:_TYPE_CHARACTERS], message[:_MESSAGE_CHARACTERS], _line(error, filename))


def told(said: Any) -> Trouble:
    """What another process said of an error: whatever it is, three fields of the right types and no more."""
    fields = said if isinstance(said, dict) else {}
    line = fields.get("line")
    return Trouble(
        str(fields.get("type"))[:_TYPE_CHARACTERS],
        str(fields.get("message"))[:_MESSAGE_CHARACTERS],
        line if type(line) is int else None,
    )


def _line(error: BaseException, filename: str) -> int | None:
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == filename else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
