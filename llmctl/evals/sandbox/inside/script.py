"""A program run on its own, as `python program.py` would: standard input in, standard output and error out."""

from __future__ import annotations

import atexit
import linecache
import sys
import threading
import traceback
from types import ModuleType
from typing import Any

from llmctl.evals.sandbox.inside import job, trouble, wire


def run(message: dict[str, Any]) -> int:
    """Run the program as __main__; tell the host what it raised and return its exit code."""
    source = message["program"]
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = [trouble.PROGRAM, *message["arguments"]]
    # Tracebacks show the program's lines.
    linecache.cache[trouble.PROGRAM] = len(source), None, source.splitlines(keepends=True), trouble.PROGRAM
    code, told = 0, None
    try:
        exec(compile(source, trouble.PROGRAM, "exec", dont_inherit=True), module.__dict__)  # noqa: S102
        _end_threads()
    except SystemExit as error:
        code = _exit_code(error)
    except BaseException as error:  # noqa: BLE001
        code, told = 1, trouble.describe(error, trouble.PROGRAM).as_json()
        _print(error)
    atexit._run_exitfuncs()  # noqa: SLF001 (this process ends without the interpreter's own end)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    wire.write_frame(job.CHANNEL, {"error": told})
    return code


def _end_threads() -> None:
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()


def _exit_code(error: SystemExit) -> int:
    """What the interpreter makes of the argument of sys.exit."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    sys.stderr.write(f"{error.code}\n")
    return 1


def _print(error: BaseException) -> None:
    """The traceback as the interpreter prints it: from the program's first frame on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != trouble.PROGRAM:
        trace = trace.tb_next
    traceback.print_exception(error.with_traceback(trace))
