"""Micro-batches side by side: the same gradient to rounding, the same bits every time."""

import threading

import pytest
import torch

from llmctl.config.train import PretrainConfig
from llmctl.model.transformer import Transformer
from llmctl.pipeline.job import Silent
from llmctl.train.lanes import LARGEST, Lanes, lanes_of
from tests.train.synthetic_run import MODEL, VOCAB, curve, make_job, train

CPU = torch.device("cpu")


class Noting(Silent):
    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


def lanes_for(device=CPU, micro_batches=8, **fields):
    config = PretrainConfig.model_validate({"model": MODEL, **fields})
    return lanes_of(config, Transformer(config.model, VOCAB), device, micro_batches)


@pytest.mark.parametrize("lanes", [2, 3])
def test_lanes_change_nothing_but_rounding_and_are_bitwise_the_same_again(tmp_path, lanes):
    notes = Noting()
    jobs = [
        make_job(tmp_path / name, progress=notes, micro_batch_rows=1, lanes=count)
        for name, count in (("a", 1), ("b", lanes), ("c", lanes))
    ]
    for job in jobs:
        train(job)
    assert sum(f"{lanes} micro-batches at a time" in line for line in notes.lines) == 2
    assert curve(jobs[1]) == curve(jobs[2])
    for one, several in zip(curve(jobs[0]), curve(jobs[1]), strict=True):
        assert one == pytest.approx(several, rel=1e-5)


def test_each_lane_takes_every_nth_and_the_sum_is_lane_by_lane():
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    unused = torch.nn.Parameter(torch.zeros(3))
    lanes = Lanes(2, [weight, unused])
    seen = {}

    def loss(number):
        seen[number] = threading.current_thread().name
        return (weight * number).sum()

    assert lanes.gradient([lambda n=n: loss(n) for n in range(5)], 0.5).item() == 30.0
    assert weight.grad.tolist() == [5.0, 5.0]
    assert unused.grad is None
    assert all(name.startswith("lane") for name in seen.values())
    lanes.gradient([lambda: loss(1)], 1.0)
    assert weight.grad.tolist() == [6.0, 6.0]


def test_what_a_lane_raises_is_raised():
    def broken():
        raise ValueError("broken row")

    with pytest.raises(ValueError, match="broken row"):
        Lanes(2, [torch.nn.Parameter(torch.zeros(1))]).gradient([broken], 1.0)


def test_lanes_are_as_many_as_micro_batches_at_most():
    assert lanes_for(lanes=4) == 4
    assert lanes_for(lanes=4, micro_batches=3) == 3
    assert lanes_for() == min(torch.get_num_threads(), 8)


@pytest.mark.parametrize(
    "fields",
    [
        {"device": torch.device("cuda")},
        {"recompute": "full"},
        {"optimizer": "sophia"},
        {"model": {**MODEL, "mtp": {"depth": 1}}},
        {"model": {**MODEL, "experts": {"count": 4, "top": 2, "ffn_width": 8}}},
    ],
)
def test_what_cannot_run_side_by_side_has_one_lane(fields):
    assert lanes_for(**{"lanes": 4, **fields}) == 1


def test_a_large_model_has_one_lane_unless_asked():
    with torch.device("meta"):
        config = PretrainConfig.model_validate({"model": "base"})
        model = Transformer(config.model, 50_304)
    assert model.parameters_count() > LARGEST
    assert lanes_of(config, model, CPU, 8) == 1
    asked = PretrainConfig.model_validate({"model": "base", "lanes": 2})
    assert lanes_of(asked, model, CPU, 8) == 2
