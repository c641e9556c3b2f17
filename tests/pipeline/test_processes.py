"""Processes that end with their owner; workers of a killed stage are tested in tests/data/test_parts.py."""

from __future__ import annotations

import subprocess
import sys
import threading

from llmctl.pipeline.processes import ORPHANED, end_with_parent

OWNED = """
import time
from llmctl.pipeline.processes import end_with_stdin
end_with_stdin()
print("up", flush=True)
time.sleep(60)
"""


def test_a_process_ends_when_its_stdin_closes() -> None:
    command = [sys.executable, "-c", OWNED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.stdin.write("words do not end it\n")
        process.stdin.flush()
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=30) == ORPHANED


def test_a_process_without_a_parent_of_its_kind_watches_nothing() -> None:
    before = threading.active_count()
    end_with_parent()
    assert threading.active_count() == before
