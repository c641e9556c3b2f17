"""Products in 8 bits: what is refused, which layers take them, and on a CPU the rounding without the speed."""

import sys

import pytest
import torch
from synthetic_run import MODEL, VOCAB, curve, make_job, train
from torch import nn

from llmctl.config.errors import ConfigError, UsageError
from llmctl.config.load import build, parse_overrides
from llmctl.config.model import ModelConfig
from llmctl.config.train import PretrainConfig
from llmctl.inference.linears import prepared
from llmctl.model.transformer import Transformer
from llmctl.train import launch
from llmctl.train.float8 import takes_float8, use_float8

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["fp8", "fp8-rowwise"])
def test_without_a_gpu_it_is_refused_before_work(tmp_path, precision):
    job = make_job(tmp_path, precision=precision)
    with pytest.raises(UsageError, match=f"precision={precision}: it needs a GPU with 8-bit products") as caught:
        launch.start(job, "synthetic_run:train")
    assert "precision=bf16" in caught.value.hint
    assert not job.metrics_file.exists()


def test_without_the_package_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(UsageError, match="needs the package torchao") as caught:
        launch.start(make_job(tmp_path, precision="fp8", nproc=2), "synthetic_run:train")
    assert "llmctl[fp8]" in caught.value.hint


def test_it_is_not_offered_where_weights_are_taken_away():
    with pytest.raises(ConfigError, match="give zero=1 or 2"):
        build(PretrainConfig, [parse_overrides(["precision=fp8", "zero=3", "nproc=2"])])


def test_layers_whose_rounding_would_decide_something_and_odd_shapes_are_left_out():
    experts = {"count": 16, "top": 2, "ffn_width": 16}
    model = Transformer(
        ModelConfig.model_validate({**MODEL, "experts": experts, "tied_embeddings": False, "kv_heads": 2}), 48
    )
    taken = {name.rpartition(".")[2] for name, layer in model.named_modules() if takes_float8(layer, name)}
    assert taken == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert takes_float8(nn.Linear(32, 48), "mlp.up_proj")
    assert not takes_float8(nn.Linear(32, 40), "mlp.up_proj")
    assert not takes_float8(nn.Linear(24, 48), "mlp.up_proj")
    narrow = nn.ModuleDict({"up_proj": nn.Linear(8, 16)})
    with pytest.raises(UsageError, match="no linear layer has both sides a multiple of 16"):
        use_float8(narrow, "fp8", CPU)


def test_the_parameters_stay_what_they_are():
    model = Transformer(ModelConfig.model_validate(MODEL), VOCAB)
    before = dict(model.named_parameters())
    assert use_float8(model, "bf16", CPU) == ""
    assert "products of 10 linear layers in 8-bit floats" in use_float8(model, "fp8", CPU)  # k and v have 8 outputs
    assert prepared(model) is model  # what draws answers rounds as what learns from them
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
    assert len(before) == len(dict(model.named_parameters()))


@pytest.mark.parametrize("precision", ["fp8", "fp8-rowwise"])
def test_rounded_to_8_bits_a_run_learns_what_bf16_learns(tmp_path, precision):
    fields = {"steps": 16, "batch_rows": 8, "optimizer": {"lr": 1e-2}, "model": {**MODEL, "kv_heads": 2}}
    rough, finer = (
        make_job(tmp_path / "a", **fields, precision=precision),
        make_job(tmp_path / "b", **fields, precision="bf16"),
    )
    train(rough)
    train(finer)
    losses, expected = ([row["loss"] for row in curve(job) if "loss" in row] for job in (rough, finer))
    assert losses != expected
    assert losses[-1] < 0.9 * losses[0]
    assert losses == pytest.approx(expected, rel=0.05)
