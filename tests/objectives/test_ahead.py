"""Rollouts drawn while the one before is learned from: one behind, exactly, and resumed bit for bit."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llmctl.config.errors import GateError, InterruptedRunError
from llmctl.config.model import ModelConfig
from llmctl.data.rollouts import FILE
from llmctl.model import huggingface
from llmctl.model.kernels import attend_through
from llmctl.model.transformer import Transformer
from llmctl.objectives.ahead import Beside
from llmctl.objectives.grpo import train
from llmctl.train.recompute import recompute

from .test_grpo import CERTAIN, StopAfter, answers_in_file, assert_same, grpo, job_of, metrics_of

PER_ROLLOUT = 4  # steps: two passes of two
AHEAD = {"ahead": True, "steps": 16, "keep": "last:100"}


@pytest.fixture(scope="module")
def whole(guesser, copying, tmp_path_factory):
    job = job_of(tmp_path_factory.mktemp("whole"), guesser, copying, **AHEAD)
    train(job)
    return job


def likelihoods(model, row):
    """Log p of an answer's ids."""
    ids = torch.tensor([[*row["prompt_ids"], *row["ids"]]])
    attend = attend_through("sdpa", torch.zeros_like(ids, dtype=torch.int32), one_each=True)
    with torch.no_grad():
        table = model.logits(model(ids, torch.arange(ids.shape[1])[None], attend))[0].log_softmax(-1)
    return table[len(row["prompt_ids"]) - 1 : -1].gather(1, torch.tensor(row["ids"])[:, None])[:, 0].tolist()


def weights_after(job, step):
    (part,) = (job.work / f"step-{step:06d}").glob("part-*.safetensors")
    return {name.removeprefix("weight/"): one for name, one in load_file(part).items() if name.startswith("weight/")}


def test_a_rollout_is_drawn_by_the_weights_from_before_the_last_one_was_learned(guesser, whole):
    rows = answers_in_file(whole.out / FILE)
    model = huggingface.load(guesser.data).eval()
    for number in range(4):
        drawn = [row for row in rows if row["step"] == number * PER_ROLLOUT + 1]
        assert len(drawn) == 80
        if number > 1:
            model.load_state_dict(weights_after(whole, (number - 1) * PER_ROLLOUT), strict=False)
        for row in drawn[::17]:
            assert row["logprobs"] == pytest.approx(likelihoods(model, row), abs=1e-4)
        if number > 0:  # and by no later ones
            model.load_state_dict(weights_after(whole, number * PER_ROLLOUT), strict=False)
            away = [abs(a - b) for row in drawn for a, b in zip(row["logprobs"], likelihoods(model, row), strict=True)]
            assert max(away) > 1e-2


@pytest.mark.parametrize("step", [2, 3, 4, 8])  # within a rollout, before one, and after one's first step
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(guesser, copying, whole, tmp_path, step):
    with pytest.raises(InterruptedRunError, match=f"stopped after step {step + 1} of 16"):
        train(job_of(tmp_path, guesser, copying, StopAfter(step), **AHEAD))
    job = job_of(tmp_path, guesser, copying, **AHEAD)
    train(job)
    assert_same(job, whole)


ONCE = """
asked = 0

def score(completion, answer, **row):
    global asked
    asked += 1
    if asked > 80:
        raise ValueError("no more")
    return float(completion.strip() == answer)
"""


def test_steps_are_saved_though_what_is_drawn_beside_them_fails(guesser, copying, tmp_path):
    (tmp_path / "own.py").write_text(ONCE)  # of the first rollout's answers, and of no later ones
    job = job_of(tmp_path, guesser, copying, rewards=f"{tmp_path}/own.py:score", missing="stop", **AHEAD)
    with pytest.raises(GateError, match="no reward: score: ValueError: no more"):
        train(job)
    assert (job.work / "step-000003").is_dir()  # complete once the next is begun: that of step 4 was


def test_it_learns_one_rollout_behind(stages, guesser, copying):
    """What is learned from was drawn by older weights, which the ratio and its bounds correct for."""
    made = stages("grpo", grpo(**{**CERTAIN, "steps": 320}, ahead=True), input=guesser, prompts=copying)
    rows = metrics_of(made)
    drawn = [row for row in rows if "reward" in row]
    assert np.mean([row["reward"] for row in drawn[:3]]) < 0.3
    assert np.mean([row["reward"] for row in drawn[-3:]]) > 0.9
    first, *later = (row for row in drawn if "ratio" in row)
    assert first["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert max(abs(row["ratio"] - 1) for row in later) > 0.01
    assert max(row["clipped"] for row in later) > 0


@pytest.mark.parametrize("how", ["none", "selective", "full"])
def test_the_copy_stands_still_while_the_model_is_trained(how):
    def states():
        documents = torch.zeros((1, 9), dtype=torch.int32)
        with torch.no_grad():
            return copied.forward(lambda model: model(ids, torch.arange(9)[None], attend_through("sdpa", documents)))

    model, ids = Transformer(ModelConfig.model_validate("nano"), 64), torch.arange(9)[None]
    model.init_weights(0)
    recompute(model, how)
    copied = Beside(SimpleNamespace(model=model, rank=0, world_size=1, device=torch.device("cpu")), "fp32")
    before = states()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    assert torch.equal(states(), before)
