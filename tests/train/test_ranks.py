"""Several ranks under DeepSpeed's own launcher, against the single process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from synthetic_run import (
    FIELDS,
    WAYS,
    StopAfter,
    curve,
    make_job,
    train,
    train_counting_orthogonalisations,
)

from llmctl.config.errors import InterruptedRunError, UsageError
from llmctl.train import launch
from llmctl.train.launch import run_ranks

HERE = Path(__file__).parent

pytestmark = pytest.mark.slow  # each start of two ranks imports torch and deepspeed three times: 15 s and more


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    job = make_job(tmp_path_factory.mktemp("single"), **FIELDS)
    train(job)
    return job


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """What two ranks make of all the ways, started once."""
    job = make_job(tmp_path_factory.mktemp("followed"), **FIELDS, nproc=2)
    run_ranks(job, "synthetic_run:train_ways")
    return job.out


def both(followed, tmp_path, way, zero):
    """What ranks made, and what a single process makes of the same fields."""
    alone = make_job(tmp_path, **WAYS[way].fields)
    train_counting_orthogonalisations(alone)
    return make_job(followed / f"{way}-{zero}"), alone


def ways(*names):
    """Each of these with each of its stages."""
    return pytest.mark.parametrize(("way", "zero"), [(name, zero) for name in names for zero in WAYS[name].stages])


def assert_same_curves(ranks, alone, rel, keys=("loss", "grad_norm")):
    for mine, theirs in zip(curve(ranks), curve(alone), strict=True):
        assert mine.keys() == theirs.keys()
        for key in keys:
            assert mine.get(key, 0) == pytest.approx(theirs.get(key, 0), rel=rel)


@ways("plain")
def test_two_ranks_follow_the_single_process(followed, single, way, zero):
    job = make_job(followed / f"{way}-{zero}")
    for mine, theirs in zip(curve(job), curve(single), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    assert curve(job)[-1]["step"] == 6
    weights, expected = (load_file(given.out / "model.safetensors") for given in (job, single))
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        # Adam divides by the root of the square, so where a gradient is almost 0 its rounding shows; lr is 3e-3.
        difference = (value - expected[name]).abs()
        assert difference.mean() < 1e-7, name
        assert difference.max() < 3e-4, name


@ways("muon", "lion")
def test_optimizers_follow_the_single_process_at_every_stage(followed, tmp_path, way, zero):
    # 1.0 is the whole size of a Lion update where the sign of a rounding error differs; Muon has no such steps.
    ranks, alone = both(followed, tmp_path, way, zero)
    for mine, theirs in zip(curve(ranks), curve(alone), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    weights, expected = (load_file(job.out / "model.safetensors") for job in (ranks, alone))
    for key, value in weights.items():
        assert (value - expected[key]).abs().mean() < 1e-6, key
    counts = [int((ranks.out / f"calls-{rank}").read_text()) for rank in range(2)]
    if way == "muon":  # 7 matrices in each of 2 layers, 6 steps: each once, dealt to the ranks
        assert int((alone.out / "calls-0").read_text()) == 14 * 6
        assert counts == [7 * 6, 7 * 6]
    else:
        assert counts == [0, 0]


@ways("growing")
def test_growing_batches_follow_the_single_process(followed, tmp_path, way, zero):
    ranks, alone = both(followed, tmp_path, way, zero)
    for mine, theirs in zip(curve(ranks), curve(alone), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


@ways("fp16")
def test_fp16_and_recomputing_ranks_follow_the_single_process(followed, tmp_path, way, zero):
    ranks, alone = both(followed, tmp_path, way, zero)
    assert_same_curves(ranks, alone, 1e-3, ["loss"])
    assert_same_curves(ranks, alone, 1e-2, ["grad_norm"])


@ways("bf16")
def test_bf16_ranks_follow_the_single_process_in_bf16(followed, tmp_path, way, zero):
    ranks, alone = both(followed, tmp_path, way, zero)
    assert_same_curves(ranks, alone, 1e-3, ["loss"])


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
