"""Work by parts: each task writes its own files, whole or not at all, and a killed run goes on at the next one.

A task's files and its report appear together, as one renamed directory under the run's work directory. When
all are there they are linked into the artifact under running numbers, so names and order follow from the
tasks alone, whoever worked on them and in which order they finished.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from llmctl.data.workers import Workers
from llmctl.pipeline.job import FileFacts, Job
from llmctl.store.files import explained, publish_bytes, sync_directory

T = TypeVar("T")

REPORT_FILE = "report.json"


@dataclass(frozen=True)
class Report:
    """What a task made.

    Attributes:
        files: facts by file name, `<prefix>-<number>.parquet`; files without rows are left out of the artifact.
        figures: whatever the stage wants to know of its parts, in JSON values.
    """

    files: dict[str, FileFacts] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Assignment(Generic[T]):
    """One task and where its files go; what a worker gets."""

    work: Callable[[T, Path], Report]
    task: T
    directory: Path


def run_parts(
    job: Job[Any], workers: Workers, work: Callable[[T, Path], Report], tasks: Sequence[T], step: str = "parts"
) -> Iterator[Report]:
    """Do `work(task, directory)` for every task that has not been done before; reports in the order of the tasks.

    Args:
        job: the run; its work directory must survive a kill (`Stage.resumable`).
        workers: who does the work.
        work: writes files into the directory that it is given; a module-level function, so that it pickles.
        tasks: what to do; the same in every attempt.
        step: name of this pass, where a stage makes several.
    """
    root = job.work / step
    with explained(str(root)):
        root.mkdir(parents=True, exist_ok=True)
        for torn in root.glob("*.tmp"):
            shutil.rmtree(torn)
    places = [root / f"{number:05d}" for number in range(len(tasks))]
    waiting = [_Assignment(work, task, place) for task, place in zip(tasks, places, strict=True) if not place.is_dir()]
    fresh = workers.map(_carry_out, waiting)
    due = {assignment.directory for assignment in waiting}
    for number, place in enumerate(places):
        if place in due:
            report = next(fresh)
            rows = {name: facts.rows for name, facts in report.files.items()}
            job.event("PART", step=step, part=number, parts=len(places), rows=rows)
            yield report
        else:
            yield read_report(place)


def _carry_out(assignment: _Assignment[T]) -> Report:
    """In a worker: do one task and publish its directory."""
    final = assignment.directory
    partial = final.with_name(final.name + ".tmp")
    with explained(str(final)):
        partial.mkdir()
        report = assignment.work(assignment.task, partial)
        values = {"files": {name: asdict(facts) for name, facts in report.files.items()}, "figures": report.figures}
        publish_bytes(partial / REPORT_FILE, json.dumps(values, sort_keys=True).encode() + b"\n")
        os.replace(partial, final)
        sync_directory(final.parent)
    return report


def read_report(directory: Path) -> Report:
    """The report of a finished task."""
    values = json.loads((directory / REPORT_FILE).read_bytes())
    files = {name: FileFacts(**facts) for name, facts in values["files"].items()}
    return Report(files, values["figures"])


def gather(job: Job[Any], reports: Sequence[Report], step: str = "parts") -> dict[str, FileFacts]:
    """Link all tasks' files into the artifact, numbered through by prefix; their facts by new name.

    Files without rows are left out. The work directory keeps its names for them until the commit, so a kill
    in between loses nothing.
    """
    numbers: dict[str, int] = {}
    facts: dict[str, FileFacts] = {}
    with explained(str(job.out)):
        job.out.mkdir(parents=True, exist_ok=True)
        for number, report in enumerate(reports):
            for name, fact in sorted(report.files.items()):
                if not fact.rows:
                    continue
                prefix, suffix = name.rpartition("-")[0], Path(name).suffix
                place = numbers[prefix] = numbers.get(prefix, -1) + 1
                new = f"{prefix}-{place:05d}{suffix}"
                os.link(job.work / step / f"{number:05d}" / name, job.out / new)
                facts[new] = fact
        sync_directory(job.out)
    return facts
