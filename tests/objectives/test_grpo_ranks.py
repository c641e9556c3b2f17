"""`grpo` over two ranks: the figures of one process, and a run that was stopped goes on bit for bit."""

import pytest
from safetensors.torch import load_file

from llmctl.data.rollouts import FILE
from llmctl.objectives.grpo import train
from llmctl.train.launch import run_ranks

from .grpo_ranks import AHEAD, placed
from .test_grpo import answers_in_file, bare, job_of

# All but `tokens`, which counts what is computed: a prompt once in each micro-batch.
COMPARED = ("loss", "grad_norm", "reward", "zero_std", "kl", "ratio", "clipped", "entropy", "heldout_reward")


def test_ranks_learn_what_one_process_does_and_go_on_bit_for_bit(guesser, write_prompts, tmp_path):
    """Five prompts to two ranks, steps of 40 answers in several micro-batches, a reference, ZeRO 1; ahead too."""
    rows = [{"id": f"copy/{n}/{turn}", "prompt": f"{n}:", "answer": str(n)} for n in range(5) for turn in range(4)]
    fields = {"steps": 8, "heldout_fraction": 0.3, "eval_every_steps": 4, "policy": {"kl": {"weight": 0.1}}}
    prompts = write_prompts(rows)
    alone = job_of(tmp_path / "alone", guesser, prompts, **fields)
    train(alone)
    both = job_of(tmp_path / "both", guesser, prompts, **fields, nproc=2, zero=1, micro_batch_tokens=64)
    product = run_ranks(both, "tests.objectives.grpo_ranks:train_and_resume")
    assert product.totals["answers"] == 2 * 5 * 16
    assert_equal(both, alone, "")
    alone_ahead = job_of(tmp_path / "ahead", guesser, prompts, **{**fields, **AHEAD})
    train(alone_ahead)
    assert_equal(both, alone_ahead, " ahead")


def assert_equal(both, alone, which):
    """Two ranks' run as a whole to that of one process, and in parts to itself."""
    whole, parts = placed(both, f"whole{which}"), placed(both, f"parts{which}")
    for mine, theirs in zip(bare(whole.metrics_file), bare(alone.metrics_file), strict=True):
        assert mine.keys() == theirs.keys()
        off = 1e-4 if mine["step"] <= 8 else 1e-3  # rounding grows with the steps
        for name in COMPARED:
            assert mine.get(name, 0) == pytest.approx(theirs.get(name, 0), rel=off, abs=1e-6), name
    for name in ("step", "prompt_id", "sample", "ids", "reward", "advantage"):
        found, expected = ([row[name] for row in answers_in_file(job.out / FILE)] for job in (whole, alone))
        assert found == expected, name
    weights, expected = (load_file(job.out / "model.safetensors") for job in (whole, alone))
    for name, value in weights.items():
        assert (value - expected[name]).abs().mean() < 1e-5, name
    for name in ("model.safetensors", FILE):
        assert (parts.out / name).read_bytes() == (whole.out / name).read_bytes()
    assert bare(parts.metrics_file) == bare(whole.metrics_file)
