"""Several ranks under DeepSpeed's own launcher, against the single process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from synthetic_run import WIDE, StopAfter, curve, make_job, train, train_counting_orthogonalisations

from llmctl.config.errors import GateError, InterruptedRunError, LlmctlError, UsageError
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


@pytest.fixture(autouse=True)
def _ranks_find_the_entry(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    job = make_job(tmp_path_factory.mktemp("single"), **FIELDS)
    train(job)
    return job


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_two_ranks_follow_the_single_process(tmp_path, single, zero):
    job = make_job(tmp_path, **FIELDS, nproc=2, zero=zero)
    product = run_ranks(job, "synthetic_run:train")
    for mine, theirs in zip(curve(job), curve(single), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    assert product.totals["steps"] == 6
    weights, expected = (load_file(given.out / "model.safetensors") for given in (job, single))
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        # Adam divides by the root of the square, so where a gradient is almost 0 its rounding shows; lr is 3e-3.
        difference = (value - expected[name]).abs()
        assert difference.mean() < 1e-7, name
        assert difference.max() < 3e-4, name


@pytest.mark.parametrize(("name", "zero"), [("muon", 0), ("muon", 1), ("muon", 2), ("muon", 3), ("lion", 2)])
def test_optimizers_follow_the_single_process_at_every_stage(tmp_path, name, zero):
    # 1.0 is the whole size of a Lion update where the sign of a rounding error differs; Muon has no such steps.
    fields = {**FIELDS, "optimizer": {"name": name, "lr": 1e-3}}
    alone, ranks = make_job(tmp_path / "alone", **fields), make_job(tmp_path / "ranks", **fields, nproc=2, zero=zero)
    train_counting_orthogonalisations(alone)
    run_ranks(ranks, "synthetic_run:train_counting_orthogonalisations")
    for mine, theirs in zip(curve(ranks), curve(alone), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    weights, expected = (load_file(job.out / "model.safetensors") for job in (ranks, alone))
    for key, value in weights.items():
        assert (value - expected[key]).abs().mean() < 1e-6, key
    counts = [int((ranks.out / f"calls-{rank}").read_text()) for rank in range(2)]
    if name == "muon":  # 7 matrices in each of 2 layers, 6 steps: each once, dealt to the ranks
        assert int((alone.out / "calls-0").read_text()) == 14 * 6
        assert counts == [7 * 6, 7 * 6]
    else:
        assert counts == [0, 0]


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_growing_batches_follow_the_single_process(tmp_path, zero):
    fields = {"model": WIDE, "steps": 6, "micro_batch_rows": 1, "eval_every_steps": 0, "batch_rows": 6}
    fields["batch_ramp"] = {"start_rows": 2, "steps": 5}  # 1, 1, 1, 2, 2 and 3 micro-batches of each of two ranks
    alone, ranks = make_job(tmp_path / "alone", **fields), make_job(tmp_path / "ranks", **fields, nproc=2, zero=zero)
    train(alone)
    run_ranks(ranks, "synthetic_run:train")
    for mine, theirs in zip(curve(ranks), curve(alone), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("zero", [2, 3])
def test_an_offloaded_optimizer_gives_the_same_and_resumes_without(tmp_path, zero):
    fields = {**FIELDS, "optimizer": {"name": "muon", "lr": 1e-3}, "checkpoint_every_steps": 1}
    alone = make_job(tmp_path / "alone", **fields)
    train(alone)
    ranks = make_job(tmp_path / "ranks", StopAfter(2), **fields, nproc=2, zero=zero, offload="cpu")
    with pytest.raises(InterruptedRunError):
        run_ranks(ranks, "synthetic_run:train")
    rest = make_job(tmp_path / "ranks", **fields, nproc=2, zero=zero)
    run_ranks(rest, "synthetic_run:train")
    for mine, theirs in zip(curve(rest), curve(alone), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_ranks_that_srun_starts_find_one_another(tmp_path, single):
    shared = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "DS_ACCELERATOR": "cpu"}
    shared |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "localhost"}
    shared |= {"MASTER_PORT": str(launch._free_port())}
    words = [sys.executable, str(HERE / "synthetic_run.py"), str(tmp_path), repr(FIELDS)]
    ranks = [
        subprocess.Popen(words, env={**shared, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)})
        for rank in range(2)
    ]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    for mine, theirs in zip(curve(make_job(tmp_path)), curve(single), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_what_a_launcher_of_ones_own_cannot_run_is_refused_before_work(tmp_path, monkeypatch):
    from llmctl.train.deepspeed import DeepSpeed

    job = make_job(tmp_path, optimizer="sophia")
    strategy = DeepSpeed.__new__(DeepSpeed)
    with pytest.raises(UsageError, match="single process only"):
        strategy.prepare(None, job.config, 1)


@pytest.mark.parametrize("zero", [0, 3])
def test_fp16_and_recomputing_ranks_follow_the_single_process(tmp_path, zero):
    fields = {**FIELDS, "precision": "fp16", "recompute": "full"}
    alone, ranks = make_job(tmp_path / "alone", **fields), make_job(tmp_path / "ranks", **fields, nproc=2, zero=zero)
    train(alone)
    run_ranks(ranks, "synthetic_run:train")
    for mine, theirs in zip(curve(ranks), curve(alone), strict=True):
        assert mine.get("loss", 0) == pytest.approx(theirs.get("loss", 0), rel=1e-3)
        assert mine.get("grad_norm", 0) == pytest.approx(theirs.get("grad_norm", 0), rel=1e-2)


def test_bf16_ranks_follow_the_single_process_in_bf16(tmp_path):
    fields = {**FIELDS, "precision": "bf16"}
    alone, ranks = make_job(tmp_path / "alone", **fields), make_job(tmp_path / "ranks", **fields, nproc=2, zero=3)
    train(alone)
    run_ranks(ranks, "synthetic_run:train")
    for mine, theirs in zip(curve(ranks), curve(alone), strict=True):
        assert mine.get("loss", 0) == pytest.approx(theirs.get("loss", 0), rel=1e-3)


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


def test_a_launcher_started_from_outside_leads_and_follows(tmp_path, single):
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--master_port", "0"]
    from llmctl.train.launch import _free_port

    launcher[-1] = str(_free_port())
    done = subprocess.run(
        [*launcher, "--module", "synthetic_run", str(tmp_path), repr(FIELDS)],
        env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for mine, theirs in zip(curve(make_job(tmp_path)), curve(single), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
