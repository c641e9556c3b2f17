"""Runs whose ranks are stopped, killed or fail, and that go on with others."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from synthetic_run import WIDE, StopAfter, curve, make_job, train

from llmctl.config.errors import GateError, InterruptedRunError, LlmctlError
from llmctl.train import launch
from llmctl.train.launch import run_ranks

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow  # each start of two ranks imports torch and deepspeed three times: 15 s and more

# A matrix of more than 100,000 elements is sharded under ZeRO 3; smaller ones stay whole on every rank.
FIELDS = {"model": WIDE, "steps": 6, "micro_batch_rows": 3, "eval_every_steps": 4}

START = """
import ast, sys
from synthetic_run import make_job
from llmctl.train import launch
from llmctl.train.launch import run_ranks
run_ranks(make_job(sys.argv[1], **ast.literal_eval(sys.argv[2])), "synthetic_run:train")
"""


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("muon", [(1, 0), (2, 3), (1, 0)]),
        ("adamw", [(2, 2), (4, 1), (2, 0)]),
        ("muon", [(4, 3), (1, 1), (2, 2)]),
    ],
    ids=str,
)
def test_a_run_goes_on_with_other_ranks_and_stages(tmp_path, name, ranks):
    fields = {**FIELDS, "batch_rows": 8, "steps": 9, "optimizer": {"name": name, "lr": 2e-3}}
    fields |= {"average": {"name": "ema", "decay": 0.5}, "eval_every_steps": 3}
    whole = make_job(tmp_path / "whole", **fields)
    train(whole)
    for number, (nproc, zero) in enumerate(ranks, start=1):
        stopper = StopAfter(3 * number - 1 if number < len(ranks) else float("inf"))
        job = make_job(tmp_path / "parts", stopper, **fields, nproc=nproc, zero=zero, checkpoint_every_steps=1)
        if number < len(ranks):
            with pytest.raises(InterruptedRunError):
                launch.start(job, "synthetic_run:train")
        else:
            launch.start(job, "synthetic_run:train")
            assert any("results agree with those of an undisturbed run to rounding only" in n for n in stopper.notes)
    for mine, theirs in zip(curve(job), curve(whole), strict=True):
        assert mine == pytest.approx(theirs, rel=2e-5)
        assert mine["tokens"] == theirs["tokens"]
    weights, expected = (load_file(one.out / "model.safetensors") for one in (job, whole))
    for key, value in weights.items():
        assert (value - expected[key]).abs().mean() < 1e-6, key


@pytest.mark.parametrize(("zero", "victim"), [(0, "the command"), (1, "a rank"), (2, "a rank"), (3, "the command")])
def test_killed_ranks_resume_on_the_same_curve(tmp_path, zero, victim):
    """A rank that is killed ends the command too, within the minute that a user may wait."""
    fields = {**FIELDS, "steps": 20, "checkpoint_every_steps": 2, "nproc": 2, "zero": zero}
    launched = [sys.executable, "-c", START, str(tmp_path / "killed"), repr(fields)]
    parent = subprocess.Popen(launched, env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}"})
    work = tmp_path / "killed" / "work"
    deadline = time.monotonic() + 120
    while len(list(work.glob("step-*"))) < 2 and time.monotonic() < deadline and parent.poll() is None:
        time.sleep(0.01)
    os.kill(parent.pid if victim == "the command" else ranks_of(work, b"--local_rank=1")[0], signal.SIGKILL)
    assert parent.wait(60) == (-signal.SIGKILL if victim == "the command" else 1)
    deadline = time.monotonic() + 30
    while ranks_of(work) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not ranks_of(work), "ranks outlived their parent"
    whole, killed = make_job(tmp_path / "whole", **fields), make_job(tmp_path / "killed", **fields)
    run_ranks(whole, "synthetic_run:train")
    run_ranks(killed, "synthetic_run:train")
    assert curve(killed) == curve(whole)  # bitwise
    assert (killed.out / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()


def ranks_of(work, word=b""):
    """Processes that were started for this work directory, with this among their words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
            if str(work).encode() in words and word in words:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_an_interrupt_stops_the_ranks_with_their_state_saved(tmp_path):
    job = make_job(tmp_path, StopAfter(2), **{**FIELDS, "steps": 500}, nproc=2, zero=2)
    with pytest.raises(InterruptedRunError, match="with its state saved"):
        run_ranks(job, "synthetic_run:train")
    assert list(job.work.glob("step-*"))


def test_an_error_of_a_rank_is_the_errors_of_the_run(tmp_path):
    job = make_job(tmp_path, **FIELDS, nproc=2, optimizer={"lr": 9.0, "eps": 1e-30}, clip_norm=1e30)
    with pytest.raises(GateError, match=r"in step \d"):
        run_ranks(job, "synthetic_run:train_to_divergence")


def test_a_dead_rank_ends_the_run_with_its_last_lines(tmp_path):
    job = make_job(tmp_path, **FIELDS, nproc=2)
    with pytest.raises(LlmctlError, match="rank 1 gives up") as caught:
        run_ranks(job, "synthetic_run:die_on_rank_1")
    assert "resumes" in caught.value.hint


def test_the_watchdog_names_the_rank_that_hangs(tmp_path):
    job = make_job(tmp_path, **FIELDS, nproc=2, watchdog_s=6)
    with pytest.raises(LlmctlError, match="rank 1 hangs in a forward pass of step 3, and the others wait") as caught:
        run_ranks(job, "synthetic_run:hang_on_rank_1")
    assert "resumes" in caught.value.hint
    assert not ranks_of(job.work)
