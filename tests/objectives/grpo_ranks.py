"""What each of several ranks runs of `grpo`, in one start of them: a run, and one that is stopped and goes on."""

import contextlib
from dataclasses import replace

from llmctl.config.errors import InterruptedRunError
from llmctl.objectives.grpo import train
from llmctl.pipeline.job import Silent
from llmctl.train.stop import STOP_FILE


class StopAfter(Silent):
    """Asks for a stop once so many steps are done; the leader alone is told of them."""

    def __init__(self, work, step):
        self.file, self.step = work / STOP_FILE, step

    def update(self, done, total, unit, **facts):
        if done == self.step:
            self.file.touch()


def placed(job, name):
    """The same job in a folder of its own."""
    root = job.out / name
    made = replace(job, out=root / "data", work=root / "work", metrics_file=root / "metrics.jsonl")
    for folder in (made.out, made.work):
        folder.mkdir(parents=True, exist_ok=True)
    return made


AHEAD = {"ahead": True, "steps": 12}  # three rollouts: the last is drawn by weights that have learned


def train_and_resume(job):
    product = whole_and_in_parts(job, "")
    whole_and_in_parts(replace(job, config=job.config.model_copy(update=AHEAD)), " ahead")
    return product


def whole_and_in_parts(job, which):
    product = train(placed(job, f"whole{which}"))
    parts = placed(job, f"parts{which}")
    with contextlib.suppress(InterruptedRunError):
        train(replace(parts, progress=StopAfter(parts.work, 5 if which else 3)))
        raise AssertionError("it was not stopped")
    train(parts)
    return product
