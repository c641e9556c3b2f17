"""One map from exceptions to messages and exit codes (design §4)."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable

import typer

from llmctl.cli.output import Sink
from llmctl.config.errors import EXIT_BUG, EXIT_OK, LlmctlError

EXIT_INTERRUPTED_BY_KEY = 130
EXIT_BROKEN_PIPE = 141


def guarded(sink: Sink, body: Callable[[], None]) -> None:
    """Run `body`; report what goes wrong, on stderr and in the receipt stream, and exit with its code."""
    try:
        body()
        code = EXIT_OK
    except LlmctlError as error:
        code = error.exit_code
        what, hint = _shown(error)
        _report(sink, code, what, hint, error.one_line)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED_BY_KEY
        _report(sink, code, "interrupted", "run the same command again to go on", "interrupted")
    except BrokenPipeError:
        code = EXIT_BROKEN_PIPE
    except OSError as error:
        from llmctl.store.files import explain

        told = explain(error, "the output")
        code = told.exit_code
        with contextlib.suppress(OSError):  # the place that failed may be stdout itself
            _report(sink, code, told.what, told.hint, told.one_line)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug must still end the stream
        code = EXIT_BUG
        traceback.print_exc(file=sys.stderr)
        _report(
            sink,
            code,
            f"bug: {type(error).__name__}: {error}",
            "please report it with the lines above",
            f"bug: {error!r}",
        )
    finally:
        sink.stop_progress()
    if code:
        raise typer.Exit(code)


def _shown(error: LlmctlError) -> tuple[str, str]:
    """The message for a terminal: several faults stand on a line each."""
    if len(error.faults) > 1:
        return "\n  ".join([f"{len(error.faults)} faults:", *error.faults]), ""
    return error.what, error.hint


def _report(sink: Sink, code: int, what: str, hint: str, one_line: str) -> None:
    from llmctl.pipeline.receipts import end_failed

    with contextlib.suppress(BrokenPipeError):  # the reader is gone already
        sink.fail(what, hint, end_failed(code, one_line))
