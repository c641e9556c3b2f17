"""Several ranks under DeepSpeed's own launcher, against the single process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from synthetic_run import WIDE, StopAfter, curve, make_job, train, train_counting_orthogonalisations

from llmctl.config.errors import InterruptedRunError, UsageError
from llmctl.train import launch
from llmctl.train.launch import run_ranks

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow  # each start of two ranks imports torch and deepspeed three times: 15 s and more

# A matrix of more than 100,000 elements is sharded under ZeRO 3; smaller ones stay whole on every rank.
FIELDS = {"model": WIDE, "steps": 6, "micro_batch_rows": 3, "eval_every_steps": 4}


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
