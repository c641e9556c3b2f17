"""What is told about an exception: its type, its message, and the line of the code that raised it."""

from __future__ import annotations

from typing import Any

PROGRAM, TESTS, SETUP = "<program>", "<tests>", "<setup>"  # file names of compiled code
_MESSAGE_CHARACTERS = 500


def describe(error: BaseException, filename: str) -> dict[str, Any]:
    """The error as a message.

    Args:
        error: as it was caught.
        filename: the code of interest; the line is that of its innermost frame, None where it has none.
    """
    try:
        message = str(error)[:_MESSAGE_CHARACTERS]
    except Exception:  # noqa: BLE001 (a program's own __str__)
        message = ""
    return {"type": type(error).__name__[:100], "message": message, "line": _line(error, filename)}


def _line(error: BaseException, filename: str) -> int | None:
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == filename else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
