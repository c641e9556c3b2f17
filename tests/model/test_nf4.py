"""Weights in 4 bits: the paper's values, what they lose, their gradient, and adapters on them."""

import copy
import importlib.util

import pytest
import torch
from torch import nn
from torch.nn import functional

from llmctl.config.lora import LoraConfig
from llmctl.model import nf4
from llmctl.model.lora import adapted, attach
from llmctl.train.states import buffers_of

from .test_lora import VARIANTS, logits_of, made, merged, moved

# Dettmers et al. 2023, arXiv:2305.14314, appendix E.
PAPER = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_values_are_those_of_the_paper():
    assert nf4.VALUES.tolist() == pytest.approx(PAPER, abs=2e-7)


def test_each_value_is_itself_and_others_go_to_the_nearest():
    exact = torch.tensor(PAPER * 4 * nf4.BLOCKS)  # blocks of one scale, 1, which so has no error of its own
    torch.testing.assert_close(nf4.Packed(exact).turned_back(), exact, rtol=0, atol=2e-7)
    weight = normal(nf4.BLOCKS * 2, nf4.BLOCK)
    weight[:, 0] = 3.0 * weight.abs().amax()  # again one scale for all
    scale = weight[0, 0]
    nearest = torch.tensor(PAPER)[(weight[..., None] / scale - torch.tensor(PAPER)).abs().argmin(-1)] * scale
    torch.testing.assert_close(nf4.rounded(weight), nearest, rtol=1e-6, atol=1e-6)


def test_scales_lose_little_by_being_kept_in_8_bits():
    weight = normal(512, 320)
    packed = nf4.Packed(weight)
    exact = weight.view(-1, nf4.BLOCK).abs().amax(dim=1)
    assert packed.scales.shape == exact.shape
    assert ((packed.scales - exact).abs() / exact).max() < 0.01
    blocks = weight.view(-1, nf4.BLOCK) / exact[:, None]
    once = torch.tensor(PAPER)[(blocks[..., None] - torch.tensor(PAPER)).abs().argmin(-1)] * exact[:, None]
    single, double = ((values.view(-1) - weight.view(-1)).square().mean() for values in (once, packed.turned_back()))
    assert double < 1.01 * single
    even = (blocks * 7).round() / 7 * exact[:, None]  # 15 equal steps, with the same scales
    assert single < 0.8 * (even.view(-1) - weight.view(-1)).square().mean()


@pytest.mark.parametrize("shape", [(7, 9), (64,), (3, 128), (1, 1), (130, 65)])
def test_any_shape_comes_back(shape):
    weight = normal(*shape)
    back = nf4.rounded(weight)
    assert back.shape == weight.shape
    assert (back - weight).abs().max() <= 0.16 * weight.abs().max()  # half of the widest gap between two values
    assert nf4.rounded(torch.zeros(shape)).abs().max() == 0


def test_it_takes_an_eighth_of_the_memory():
    weight = normal(1024, 1024)
    assert nf4.Packed(weight).bytes * 8 / weight.numel() == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-3)
    model = made(width=64, heads=4, ffn_width=128)
    count = sum(one.numel() for name, one in model.named_parameters() if name.startswith("layers") and one.ndim == 2)
    assert nf4.quantize(model) == pytest.approx(count * 4.127 / 8, rel=0.01)
    assert not any(name.startswith("layers") and one.ndim == 2 for name, one in model.named_parameters())
    assert buffers_of(model) == {}  # no state and no checkpoint holds them


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_bitsandbytes_gives_nearly_the_same():
    theirs = importlib.import_module("bitsandbytes.functional")
    weight = normal(256, 320)
    codes, state = theirs.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    torch.testing.assert_close(nf4.rounded(weight), theirs.dequantize_4bit(codes, state), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradient_are_those_of_the_weights_that_it_stands_for(bias):
    layer = nn.Linear(24, 10, bias=bias)
    kept = nf4.Nf4Linear(layer)
    weight, given = kept.weight, normal(3, 5, 24, seed=1)
    results = []
    for make in (kept, lambda x: functional.linear(x, weight, layer.bias)):
        x = given.clone().requires_grad_()
        out = make(x)
        (out * normal(3, 5, 10, seed=2)).sum().backward()
        results.append((out.detach(), x.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kept(given).dtype == torch.bfloat16
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        kept(given.clone().requires_grad_())
    assert all(tensor.shape != weight.shape for tensor in saved)  # it is made again in the backward pass


@pytest.mark.parametrize("fields", [one for one in VARIANTS if one.get("init") != "pissa"], ids=str)
def test_adapters_on_it_begin_as_their_base_and_merge(fields):
    model, full = made(), made()
    nf4.quantize(model)
    before = logits_of(model)[1]
    assert (before - logits_of(full)[1]).abs().max() > 1e-3
    attach(model, LoraConfig.model_validate({**fields, "base": "nf4"}), seed=3)
    torch.testing.assert_close(logits_of(model)[1], before, rtol=1e-5, atol=1e-5)
    factors = moved(model)
    after = logits_of(model)[1]
    assert (after - before).abs().max() > 1e-2
    back = copy.deepcopy(full)
    with torch.no_grad():
        for name, layer in full.named_modules():
            if nf4.quantized(name, layer):
                back.get_submodule(name).weight.copy_(nf4.rounded(layer.weight))
    torch.testing.assert_close(logits_of(merged(back, factors))[1], after, rtol=1e-5, atol=1e-5)
    assert all(isinstance(layer.base, nf4.Nf4Linear) for _, layer in adapted(model))
