import importlib.util
import json
import math
import re
import sys

import numpy as np
import pytest
import torch
from synthetic_run import MODEL, SEQ_LEN, VOCAB, Counting, MadeUpRows, make_job, train

from llmctl.config.errors import ConfigError, UsageError
from llmctl.config.load import build, parse_overrides
from llmctl.config.model import ModelConfig
from llmctl.config.train import PretrainConfig
from llmctl.model.experts import layers_of
from llmctl.model.transformer import Transformer, flops_per_token
from llmctl.tokens.batch import IGNORE
from llmctl.train.balance import end_step
from llmctl.train.heldout import HeldOutRows
from llmctl.train.loop import fit
from llmctl.train.measures import measured_peak, memory_bytes, vendor_peak

CPU = torch.device("cpu")


def rows(job):
    return [json.loads(line) for line in job.metrics_file.read_text().splitlines()]


def test_utilisation_is_operations_over_the_peak_that_was_told(tmp_path):
    notes = []

    class Notes:
        def note(self, text):
            notes.append(text)

        def update(self, *args, **facts):
            pass

    job = make_job(tmp_path, Notes(), steps=3)
    totals = train(job).totals
    told = next(note for note in notes if note.startswith("utilisation is of "))
    peak = float(told.split()[3]) * 1e12
    assert re.search(r"a product of (\d+) x \1 matrices in float32 on one rank", told)
    flops = flops_per_token(ModelConfig.model_validate(MODEL), VOCAB, SEQ_LEN)
    for row in rows(job):
        if "loss" in row:
            assert row["mfu"] == pytest.approx(row["tokens_per_s"] * flops / peak, rel=0.01)  # three digits are told
    assert totals["mfu"] == pytest.approx(totals["tokens_per_s"] * flops / peak, rel=0.01)


def test_bits_per_byte_of_a_step_are_its_nats_over_its_bytes(tmp_path):
    job = make_job(tmp_path, steps=2, batch_rows=8)
    model = Transformer(job.config.model, VOCAB)
    model.init_weights(0)
    lengths = np.arange(VOCAB, dtype=np.int32)
    fit(job, model, Counting(), steps=2, heldout_rows=HeldOutRows(MadeUpRows(3, salt=1), lengths))
    from llmctl.train.loader import Plan

    batch = MadeUpRows(40).batch(Plan.of(job.config, 2, 0, 1).rows(0, MadeUpRows(40)))
    labels = batch.labels[batch.labels != IGNORE]
    row = rows(job)[0]
    assert row["bits_per_byte"] == pytest.approx(row["loss"] * labels.size / math.log(2) / lengths[labels].sum())


def test_every_step_says_where_time_and_memory_go(tmp_path):
    job = make_job(tmp_path, steps=2)
    train(job)
    row = rows(job)[0]
    assert {"loss", "bits_per_byte", "lr", "grad_norm", "tokens_per_s", "data_wait_s", "mfu"} <= row.keys()
    assert 10**7 < row["peak_memory_bytes"] <= memory_bytes(CPU)


def test_the_peak_is_what_products_reach():
    peak = measured_peak(CPU, torch.float32)
    assert 1e8 < peak.flops < 1e15


def test_a_vendors_peak_is_named_or_refused(monkeypatch):
    with pytest.raises(UsageError, match="no vendor's peak is known for the CPU"):
        vendor_peak(CPU)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    peak = vendor_peak(torch.device("cuda"))
    assert (peak.flops, peak.told) == (989.4e12, "the vendor's dense bf16 figure for NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert vendor_peak(torch.device("cuda")).flops == 756e12


def test_trackers_need_a_place_to_write_to():
    with pytest.raises(ConfigError, match="track needs track_to"):
        build(PretrainConfig, [parse_overrides(["track=[tensorboard]"])])


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_a_missing_tracker_is_an_error_before_any_step(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    job = make_job(tmp_path, steps=2, track=[name], track_to=str(tmp_path / "tracks"))
    with pytest.raises(UsageError, match=f"track={name} needs the package {name}") as caught:
        train(job)
    assert caught.value.hint == f"pip install 'llmctl[{name}]'"
    assert not job.metrics_file.exists()


def test_tensorboard_gets_every_row(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    job = make_job(tmp_path / "name" / "run", steps=3, track=["tensorboard"], track_to=str(tmp_path / "tracks"))
    train(job)
    [folder] = (tmp_path / "tracks").iterdir()
    assert folder.name == "name-run"
    events = reading.EventAccumulator(str(folder))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(row["step"], pytest.approx(row["loss"])) for row in rows(job) if "loss" in row]
    assert [event.step for event in events.Scalars("heldout_loss")] == [3]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_other_trackers_where_they_are_installed(tmp_path, name, monkeypatch):
    if importlib.util.find_spec(name) is None:  # not imported here: some read their folder when they are
        pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    job = make_job(tmp_path / "name" / "run", steps=2, track=[name], track_to=str(tmp_path / "tracks"))
    train(job)
    assert any((tmp_path / "tracks").rglob("*"))


EXPERTS = {**MODEL, "experts": {"count": 4, "top": 2, "ffn_width": 8, "router": "sigmoid", "balance": "bias"}}


def test_the_balance_of_experts_is_measured_and_its_biases_are_saved(tmp_path):
    steps = 24  # many, as the state of a step lands during a later one
    fields = {"model": EXPERTS, "steps": steps, "checkpoint_every_steps": 2, "eval_every_steps": 8}
    whole, parts = make_job(tmp_path / "whole", **fields), make_job(tmp_path / "parts", **fields)
    weights = {}
    for name, job in (("whole", whole), ("parts", parts)):
        model = Transformer(job.config.model, VOCAB)
        model.init_weights(0)
        if name == "parts":
            with pytest.raises(MemoryError):
                fit(job, model, Failing(job), steps=steps, heldout_rows=None)
            model = Transformer(job.config.model, VOCAB)
            model.init_weights(0)
        weights[name] = fit(job, model, Counting(), steps=steps, heldout_rows=None).weights
    biases = [key for key in weights["whole"] if key.endswith("balance_bias")]
    assert len(biases) == 2
    assert any(weights["whole"][key].abs().max() > 0 for key in biases)
    assert all(torch.equal(weights["whole"][key], weights["parts"][key]) for key in weights["whole"])
    for row in rows(whole):
        assert row["experts_max_violation"] >= 0
        assert 0 <= row["experts_unused_fraction"] < 1


class Failing(Counting):
    """Dies once the state of step 4 or a later one is there."""

    def __init__(self, job):
        super().__init__()
        self.work = job.work

    def loss(self, model, batch):
        if any(path.name >= "step-000004" for path in self.work.glob("step-*")):
            raise MemoryError
        return super().loss(model, batch)


def test_experts_are_counted_over_all_ranks_and_not_while_measuring(tmp_path):
    model = Transformer(ModelConfig.model_validate(EXPERTS), VOCAB)
    model.init_weights(0)
    for layer in layers_of(model):
        layer.load = torch.tensor([8, 0, 0, 0])
    figures = end_step(model, lambda counts: [2 * count for count in counts])  # as if another rank had the same
    assert figures == {"experts_max_violation": 3.0, "experts_unused_fraction": 0.75}
    assert layers_of(model)[0].load is None
    assert layers_of(model)[0].balance_bias[0] < 0 < layers_of(model)[0].balance_bias[1]
    job = make_job(tmp_path, model=EXPERTS, steps=1)
    held = HeldOutRows(MadeUpRows(7, salt=1), np.ones(VOCAB, dtype=np.int32))
    fit(job, model, Counting(), steps=1, heldout_rows=held)
    assert all(layer.load is None for layer in layers_of(model))
    assert model.training
