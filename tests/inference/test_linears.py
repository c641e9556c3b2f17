"""Layers in another format say what the weights that they stand for say; rounding is no coarser than it must be."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from llmctl.config.lora import LoraConfig
from llmctl.inference.conversation import open_engine
from llmctl.inference.engine import Engine
from llmctl.inference.fused import FusedBlock
from llmctl.inference.linears import GROUP, Int4Linear, Int8Linear, PackedLinear, prepare, prepared
from llmctl.inference.options import Options
from llmctl.inference.request import Request
from llmctl.model.lora import attach
from tests.inference.conftest import lively
from tests.inference.test_scheduling import drawn_requests, same

SHAPES = [(64, 96), (48, 32), (16, 160)]
DTYPES = [torch.float32, torch.bfloat16]


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_a_packed_layer_is_the_layer(shape: tuple[int, int], dtype: torch.dtype, rows: int) -> None:
    weight, bias, x = drawn(shape, dtype), drawn(shape[:1], dtype, 1), drawn((2, rows, shape[1]), dtype, 2)
    expected = functional.linear(x, weight, bias)
    assert torch.allclose(
        PackedLinear([weight], bias)(x), expected, atol=1e-4, rtol=1e-2 if dtype.itemsize == 2 else 1e-5
    )


def test_weights_laid_out_later_are_those_laid_out_at_once() -> None:
    works: list[Callable[[], None]] = []
    weights = [drawn((64, 96), torch.float32), drawn((20, 96), torch.float32, 1)]
    layer, x = PackedLinear(weights, None, works.append), drawn((3, 96), torch.float32, 2)
    assert len(works) == 2, "one for each of the layers that it joins"
    layer.packed.fill_(math.nan)
    for work in reversed(works):
        work()
    assert torch.equal(layer(x), PackedLinear(weights, None)(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
def test_a_coarse_layer_multiplies_by_what_it_stands_for(
    kind: type[Int8Linear | Int4Linear], shape: tuple[int, int], dtype: torch.dtype, rows: int
) -> None:
    weight, bias, x = drawn(shape, dtype), drawn(shape[:1], dtype, 1), drawn((2, rows, shape[1]), dtype, 2)
    layer = kind(weight, bias)
    expected = functional.linear(x.double(), layer.dequantized().double(), bias.double())
    error = (layer(x).double() - expected).abs().max() / expected.abs().max()
    assert error < (1e-6 if dtype == torch.float32 else 2e-2)


def test_rounding_is_to_the_nearest() -> None:
    weight = drawn((64, 96), torch.float32)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((Int8Linear(weight, None).dequantized() - weight).abs() <= step / 2 + 1e-6).all()
    grouped = weight.view(64, -1, GROUP)
    step = (grouped.amax(-1, keepdim=True) - grouped.amin(-1, keepdim=True)) / 15
    assert ((Int4Linear(weight, None).dequantized().view_as(grouped) - grouped).abs() <= step / 2 + 1e-6).all()


def test_zeros_stay_zeros() -> None:
    for kind in (Int8Linear, Int4Linear):
        assert torch.equal(kind(torch.zeros(16, 32), None)(torch.ones(2, 32)), torch.zeros(2, 16))


def test_every_layer_is_replaced_but_those_that_cannot_be() -> None:
    model = prepare(lively(), "int4")
    kinds = [type(layer) for layer in model.modules()]
    assert nn.Linear not in kinds
    assert kinds.count(Int8Linear) == 1 + 2 * 1  # the output matrix, and down_proj, whose 176 columns no group divides
    assert (
        kinds.count(Int4Linear) == 2 * 3
    )  # queries, keys and values in one, what follows attention, gate and up in one
    latent = prepare(
        lively(kv_heads=4, head_width=24, latent={"kv_rank": 12, "rope_width": 8, "value_width": 16}), "int8"
    )
    assert isinstance(latent.layers[0].self_attn.kv_b_proj, nn.Linear)  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prepared_model_answers_as_before(dtype: torch.dtype) -> None:
    requests = drawn_requests(5, 6)
    model = lively().to(dtype)
    with Engine(copy.deepcopy(model), None) as engine:
        plain = engine.generate(requests)
    with Engine(prepare(model, "plain"), None) as engine:
        if dtype == torch.float32:
            same(engine.generate(requests), plain)
        else:
            assert [len(answer.token_ids) for answer in engine.generate(requests)] == [r.max_tokens for r in requests]


def test_a_model_in_training_answers_by_a_prepared_one_that_reads_its_weights() -> None:
    requests, model = drawn_requests(5, 6), lively()
    with Engine(copy.deepcopy(model), None) as engine:
        plain = engine.generate(requests)
    names = [name for name, _ in model.named_parameters()]
    answering = prepared(model)
    assert isinstance(answering.layers[0], FusedBlock)
    assert answering.embed_tokens.weight.data_ptr() == model.embed_tokens.weight.data_ptr()
    with Engine(answering, None) as engine:
        same(engine.generate(requests), plain)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == names
    attach(model, LoraConfig(rank=2), 0)
    assert prepared(model) is model


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_coarse_weights_change_log_probabilities_a_little(weights: str) -> None:
    pairs = [([1, 5], [seed, seed + 1, seed + 2]) for seed in range(20, 60)]
    with Engine(lively(), None) as engine:
        plain = engine.score(pairs)
    with Engine(prepare(lively(), weights), None) as engine:  # type: ignore[arg-type]
        coarse = engine.score(pairs)
    apart = [abs(one.logprob - other.logprob) for one, other in zip(plain, coarse, strict=True)]
    assert 1e-5 < sum(apart) / len(apart) < {"int8": 0.2, "int4": 2.0}[weights]


def test_the_formats_are_options_of_the_engine(checkpoint: Path) -> None:
    for weights, kind in (("plain", PackedLinear), ("int8", Int8Linear), ("int4", Int4Linear)):
        options = Options(weights=weights, cache_bits=8)  # type: ignore[arg-type]
        with open_engine(checkpoint, device="cpu", precision="fp32", options=options) as engine:
            layer = getattr(engine.model.layers[0], "block", engine.model.layers[0])
            assert isinstance(layer.self_attn.qkv_proj, kind)
            assert engine._scheduler.cache.data.dtype == torch.int8
            assert len(engine.generate([Request([1], max_tokens=5, stop_ids=())])[0].token_ids) == 5


def test_a_coarse_cache_is_near_and_does_not_depend_on_the_cut() -> None:
    requests = drawn_requests(9, 6)
    with Engine(lively(), None, options=Options(cache_bits=8, prefix_cache=False)) as engine:
        coarse = engine.generate(requests)
    for options in (Options(cache_bits=8), Options(cache_bits=8, step_tokens=5), Options(cache_bits=8, draft_tokens=3)):
        with Engine(lively(), None, max_running=3, options=options) as engine:
            same(engine.generate(requests), coarse)
    prompt = [1, *range(20, 80)]
    scored = Request(prompt, max_tokens=0, prompt_logprobs=0)
    tables = []
    for options in (Options(), Options(cache_bits=8)):
        with Engine(lively(), None, options=options) as engine:
            (answer,) = engine.generate([scored])
            tables.append([entry.logprob for entry in (answer.prompt_logprobs or ())[1:] if entry is not None])
    apart = [abs(one - other) for one, other in zip(*tables, strict=True)]
    assert len(apart) == len(prompt) - 1
    assert 1e-6 < sum(apart) / len(apart) < 0.1
