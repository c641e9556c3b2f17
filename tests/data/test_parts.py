"""Work by parts: order, resume, and the same names whoever did the work."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llmctl.config.base import Config
from llmctl.config.errors import InputError, LlmctlError
from llmctl.data.parts import Report, gather, run_parts
from llmctl.data.workers import Native
from llmctl.pipeline.job import FileFacts, Job, Silent
from tests.data.conftest import unused


def write(task, directory: Path) -> Report:
    """Write the number of lines that the task asks for; none is no file."""
    name, rows = task
    (directory / "part-00000.parquet").write_text(f"{name}\n" * rows)
    return Report({"part-00000.parquet": FileFacts(rows=rows)}, {"process": os.getpid()})


def refuse(task, directory: Path) -> Report:
    del directory
    raise InputError(f"{task} is bad", hint="mend it")


def die(task, directory: Path) -> Report:
    if task == "victim":
        os.kill(os.getpid(), signal.SIGKILL)
    return write((task, 1), directory)


@pytest.fixture
def make_job(tmp_path: Path):
    """A job of no stage: only its directories are used."""

    def make() -> Job[Config]:
        return Job(
            config=Config(), inputs={}, out=tmp_path / "data", work=tmp_path / "work",
            metrics_file=tmp_path / "metrics.jsonl", progress=Silent(), nested=unused,
        )  # fmt: skip

    return make


TASKS = [("a", 1), ("b", 0), ("c", 2), ("d", 1)]


@pytest.mark.parametrize("workers", [1, 2])
def test_parts_are_numbered_in_the_order_of_the_tasks(make_job, workers):
    job = make_job()
    reports = list(run_parts(job, Native(workers), write, TASKS))
    facts = gather(job, reports)
    assert [facts[name].rows for name in sorted(facts)] == [1, 2, 1]
    assert [(job.out / name).read_text() for name in sorted(facts)] == ["a\n", "c\nc\n", "d\n"]
    assert (os.getpid() in {report.figures["process"] for report in reports}) == (workers == 1)


def test_every_part_is_an_event_once(make_job):
    events = []
    job = replace(make_job(), event=lambda event, **facts: events.append((event, facts)))
    list(run_parts(job, Native(2), write, TASKS, "shards"))
    list(run_parts(job, Native(2), write, TASKS, "shards"))
    assert [event for event, _ in events] == ["PART"] * 4
    assert events[2][1] == {"step": "shards", "part": 2, "parts": 4, "rows": {"part-00000.parquet": 2}}


def test_finished_tasks_are_not_done_again(make_job):
    job = make_job()
    first = list(run_parts(job, Native(1), write, TASKS))
    os.rename(job.work / "parts" / "00002", job.work / "parts" / "00002.tmp")  # as a kill leaves it
    again = list(run_parts(job, Native(2), write, TASKS))
    assert [a == b for a, b in zip(first, again, strict=True)][:2] == [True, True]
    assert sorted(path.name for path in (job.work / "parts").iterdir()) == ["00000", "00001", "00002", "00003"]
    assert json.loads((job.work / "parts" / "00002" / "report.json").read_bytes())["files"]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_worker_is_raised_here_with_its_hint(make_job, workers):
    job = make_job()
    with pytest.raises(InputError, match="x is bad") as caught:
        list(run_parts(job, Native(workers), refuse, ["x", "y"]))
    assert caught.value.hint == "mend it"


def test_a_killed_worker_is_told_and_finished_parts_stay(make_job):
    job = make_job()
    with pytest.raises(LlmctlError, match="worker process was killed") as caught:
        list(run_parts(job, Native(2), die, ["fine", "victim"]))
    assert "workers=1" in caught.value.hint


ORPHANS = """
import sys, time
from llmctl.data.workers import Native

def sleep(seconds):
    print("up", flush=True)
    time.sleep(seconds)

if __name__ == "__main__":
    list(Native(2).map(sleep, [60, 60]))
"""


def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environ)
    assert [parent.stdout.readline(), parent.stdout.readline()] == [b"up\n", b"up\n"]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    begun = time.monotonic()
    assert parent.stdout.read() == b""  # ends when the last worker has
    assert time.monotonic() - begun < 30
    assert multiprocessing.active_children() == []
