"""Programs on their own: standard input in, standard output, error and exit code out."""

from __future__ import annotations

import pytest

from llmctl.evals.sandbox.box import Sandbox
from llmctl.evals.sandbox.verdict import Limits


def test_input_and_output(box: Sandbox) -> None:
    program = "import sys\nprint(input() * 2, sys.argv[1:])\nprint('caf\u00e9', file=sys.stderr)\nsys.exit(3)"
    output = box.run(program, "ab\n", arguments=["-x"])
    assert (output.kind, output.stdout, output.stderr, output.exit_code) == (
        "exited",
        "abab ['-x']\n",
        "caf\u00e9\n",
        3,
    )


def test_a_traceback_shows_the_program_alone(box: Sandbox) -> None:
    output = box.run("def f():\n    return 1 / 0\nprint('before')\nf()")
    assert (output.kind, output.exit_code, output.error, output.line) == ("exited", 1, "ZeroDivisionError", 2)
    assert output.stdout == "before\n"
    assert output.stderr.splitlines() == [
        "Traceback (most recent call last):",
        '  File "<program>", line 4, in <module>',
        "    f()",
        '  File "<program>", line 2, in f',
        "    return 1 / 0",
        "           ~~^~~",
        "ZeroDivisionError: division by zero",
    ]


def test_the_main_module_threads_and_exit_functions(box: Sandbox) -> None:
    program = (
        "import atexit, threading, time\n"
        "atexit.register(print, 'exit')\n"
        "def late(): time.sleep(0.05); print('thread')\n"
        "if __name__ == '__main__': threading.Thread(target=late).start()\n"
    )
    assert box.run(program).stdout == "thread\nexit\n"


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        ("while True: pass", "timed out"),
        ("import time\ntime.sleep(60)", "timed out"),
        ("x = bytes(4 << 30)", "memory"),
        ("import sys\nwhile True: sys.stdout.write('x' * 65536)", "output"),
        ("import os\nwhile True: os.write(2, b'x' * 65536)", "output"),
        ("import os\nos._exit(0)", "exited"),
        ("import os\nos.close(3)", "exited"),
        ("import os\nos.write(3, b'{' * 99999)", "exited"),
    ],
)
def test_how_a_run_ends(box: Sandbox, program: str, kind: str) -> None:
    limits = Limits(timeout_s=1.0)
    output = box.run(program, limits=limits)
    assert output.kind == kind
    assert output.seconds <= limits.timeout_s + 1
    assert len(output.stdout) <= limits.output_bytes
    assert len(output.stderr) <= limits.output_bytes


def test_scratch_is_writable_bounded_and_gone(box: Sandbox) -> None:
    program = (
        "import os, pathlib\n"
        "print(os.getcwd(), sorted(os.listdir('/tmp')))\n"
        "pathlib.Path('a').write_bytes(bytes(8 << 20))\n"
        "try: pathlib.Path('b').write_bytes(bytes(12 << 20))\n"
        "except OSError as error: print(error.strerror)\n"
    )
    for _ in range(2):
        assert box.run(program).stdout == "/tmp []\nNo space left on device\n"  # noqa: S108 (inside)


def test_processes_where_they_are_allowed(box: Sandbox) -> None:
    program = (
        "import os\npid = os.fork()\nif pid == 0: os._exit(7)\nprint(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    assert box.run(program, limits=Limits(processes=4)).stdout == "7\n"
    assert box.run(program).error == "PermissionError"
