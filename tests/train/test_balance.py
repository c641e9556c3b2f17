"""Experts and further tokens in training: the same whatever the micro-batches and ranks, and measured."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from synthetic_run import MODEL, WIDE, curve, make_job, train

from llmctl.train.launch import run_ranks

BESIDE = {
    "mtp": {"depth": 2},
    "experts": {"count": 4, "top": 2, "ffn_width": 8, "balance": "bias", "balance_loss": 0.1, "z_loss": 0.01},
}
FIGURES = ("experts_max_violation", "experts_unused_fraction", "mtp_loss", "router_balance", "router_z")


def figures(job):
    rows = [json.loads(line) for line in job.metrics_file.read_text().splitlines()]
    return [{name: row[name] for name in FIGURES} for row in rows if "loss" in row]


def same_weights(a, b, tolerance):
    ours, theirs = load_file(a.out / "model.safetensors"), load_file(b.out / "model.safetensors")
    return ours.keys() == theirs.keys() and all((ours[name] - theirs[name]).abs().mean() <= tolerance for name in ours)


@pytest.mark.parametrize("rows", [1, 3])
def test_micro_batches_change_nothing_but_rounding(tmp_path, rows):
    fields = {"model": {**MODEL, **BESIDE}, "steps": 6}
    whole, parts = make_job(tmp_path / "whole", **fields), make_job(tmp_path / "parts", **fields, micro_batch_rows=rows)
    train(whole)
    train(parts)
    for a, b in zip(curve(whole) + figures(whole), curve(parts) + figures(parts), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    assert same_weights(whole, parts, 1e-5)
    biases = [value for name, value in load_file(whole.out / "model.safetensors").items() if "balance_bias" in name]
    assert len(biases) == 4  # of two layers, and of two blocks behind them
    assert all(torch.count_nonzero(bias) for bias in biases)


def test_a_balance_loss_alone_is_measured(tmp_path):
    experts = {**BESIDE["experts"], "balance": "none"}
    job = make_job(tmp_path, model={**MODEL, "experts": experts}, steps=2)
    train(job)
    rows = [json.loads(line) for line in job.metrics_file.read_text().splitlines()]
    row = rows[0]
    assert "mtp_loss" not in row
    assert row["router_balance"] >= 0.9
    assert row["router_z"] > 0.5  # (ln 4)^2 = 1.9 where all scores are 0


@pytest.mark.parametrize("how", ["full", "selective"])
def test_recomputed_activations_count_no_token_twice(tmp_path, how):
    fields = {"model": {**MODEL, **BESIDE}, "steps": 3}
    kept, again = make_job(tmp_path / "kept", **fields), make_job(tmp_path / "again", **fields, recompute=how)
    train(kept)
    train(again)
    assert curve(kept) == curve(again)
    assert figures(kept) == figures(again)
    assert same_weights(kept, again, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 2, 3])
def test_ranks_follow_the_single_process(tmp_path, zero, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    fields = {"model": {**WIDE, **BESIDE}, "steps": 4, "micro_batch_rows": 3}
    alone, ranks = make_job(tmp_path / "alone", **fields), make_job(tmp_path / "ranks", **fields, nproc=2, zero=zero)
    train(alone)
    run_ranks(ranks, "synthetic_run:train")
    for mine, theirs in zip(curve(ranks) + figures(ranks), curve(alone) + figures(alone), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert same_weights(alone, ranks, 1e-5)
