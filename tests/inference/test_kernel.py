"""The compiled steps between the products, against torch in float64."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from llmctl.config.model import ModelConfig
from llmctl.data import compiled
from llmctl.inference import kernel
from llmctl.inference.engine import Engine
from llmctl.inference.linears import prepare
from llmctl.inference.request import Request
from llmctl.model import native
from llmctl.model.attention import PLAIN, Scoring, packed, scored
from llmctl.model.positions import rotary_angles, rotate
from llmctl.model.transformer import Transformer
from tests.conftest import environment
from tests.inference.conftest import VOCAB, lively

DTYPES = [torch.float32, torch.bfloat16]
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
RULES = {
    "plain": {},
    "scaled": {"scale": 0.2},
    "window": {"window": 5},
    "softcap": {"softcap": 3.0},
    "slopes": {"slopes": True},
    "sinks": {"sinks": True},
    "everything": {"scale": 0.5, "window": 19, "softcap": 2.0, "slopes": True, "sinks": True},
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    assert ours.dtype == dtype
    assert (ours.double() - theirs.double()).abs().max() <= CLOSE[dtype] * theirs.abs().max().clamp(min=1)


def by_reference(q: Tensor, data: Tensor, tables: Tensor, places: Tensor, scoring: Scoring) -> Tensor:
    """One row after the other, through `scored` in float64."""
    K, rows = data.shape[2] // 2, []
    for one, (sequence, seen) in zip(q.double(), places.tolist(), strict=True):
        held = data[tables[sequence].long()].flatten(0, 1)[:seen].double()[None]  # [1,S,2K,E]
        away = (seen - 1 - torch.arange(seen))[None, None, None]
        rows.append(
            scored(one[None, None], held[:, :, :K], held[:, :, K:], None, scoring, lambda away=away: away)[0, 0]
        )
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=6)
@given(
    heads=st.sampled_from([(1, 1), (6, 2), (3, 3), (9, 1), (20, 2)]),
    width=st.sampled_from([16, 48, 64, 128, 256]),
    block=st.sampled_from([4, 16]),
    seen=st.lists(st.integers(1, 70), min_size=1, max_size=5),
)
def test_attention_is_that_of_torch(
    dtype: torch.dtype, rule: str, heads: tuple[int, int], width: int, block: int, seen: list[int]
) -> None:
    given = dict(RULES[rule])
    if given.pop("slopes", None):
        given["slopes"] = drawn(heads[0], seed=3).abs() / 8
    if given.pop("sinks", None):
        given["sinks"] = drawn(heads[0], seed=4)
    scoring = Scoring(**given)
    blocks = -(-70 // block)
    tables = torch.randperm(len(seen) * blocks, generator=torch.Generator().manual_seed(5)).view(len(seen), blocks)
    places = torch.tensor([(index % len(seen), count) for index, count in enumerate([*seen, max(1, seen[0] // 2)])])
    q = drawn(len(places), heads[0] + 1, width, seed=1).to(dtype)[:, 1:]  # rows further apart than they are long
    data = drawn(tables.numel(), block, 2 * heads[1], width, seed=2).to(dtype)
    rows = kernel.Rows(tables.int(), places.int())
    close(kernel.attend(q, data, None, rows, scoring), by_reference(q, data, tables, places, scoring), dtype)

    scales = (data.float().abs().amax(-1, keepdim=True) / 127).clamp(min=1e-9)
    whole = (data.float() / scales).round().to(torch.int8)
    theirs = by_reference(q, whole * scales, tables, places, scoring)
    close(kernel.attend(q, whole, scales, rows, scoring), theirs, dtype)


def test_scores_far_apart_neither_overflow_nor_vanish() -> None:
    q, data = torch.full((1, 1, 16), 100.0), torch.zeros(4, 16, 2, 16)
    data[:, :, 0] = drawn(4, 16, 1, seed=1) * 10
    data[:, :, 1] = drawn(4, 16, 16, seed=2)
    rows = kernel.Rows(torch.arange(4, dtype=torch.int32)[None], torch.tensor([[0, 64]], dtype=torch.int32))
    for sinks in (None, torch.tensor([-1e4]), torch.tensor([1e6])):
        scoring = Scoring(sinks=sinks)
        close(
            kernel.attend(q, data, None, rows, scoring),
            by_reference(q, data, rows.tables, rows.places, scoring),
            torch.float32,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 16, 23, 576])
def test_norm_gate_and_turn_are_those_of_torch(dtype: torch.dtype, width: int) -> None:
    x, weight = drawn(2, 5, width).to(dtype), drawn(width, seed=1).to(dtype)
    theirs = functional.rms_norm(x.double(), (width,), weight.double(), 1e-5)
    close(kernel.rms_norm(x, weight, 1e-5), theirs, dtype)
    close(kernel.rms_norm(x.transpose(0, 1), weight, 1e-5), theirs.transpose(0, 1), dtype)

    joined = drawn(2, 5, 2 * width, seed=2).to(dtype) * 30
    gate, up = joined.double().chunk(2, dim=-1)
    close(kernel.gated(joined), functional.silu(gate) * up, dtype)

    joined = drawn(1, 5, 3 * 2 * width, seed=3).to(dtype)
    angles = rotary_angles(torch.tensor([[0, 1, 7, 900, 8191]]), 2 * width, 10_000.0)
    heads = joined.view(1, 5, 3, 2 * width).clone()
    kernel.turn(joined, 2, 2 * width, angles)
    close(joined.view(heads.shape)[:, :, :2], rotate(heads[:, :, :2].float(), angles), dtype)
    assert torch.equal(joined.view(heads.shape)[:, :, 2], heads[:, :, 2])


def test_what_is_no_number_stays_none() -> None:
    x = torch.tensor([[torch.nan, 1.0, torch.inf, *[0.0] * 29]]).to(torch.bfloat16)
    assert kernel.rms_norm(x, torch.ones(32, dtype=torch.bfloat16), 1e-5)[0, 0].isnan()
    assert kernel.gated(x)[0].isnan()[0]


SHAPES = {
    "grouped": {"kv_heads": 2},
    "latent": {"kv_heads": 4, "head_width": 24, "latent": {"kv_rank": 12, "rope_width": 8, "value_width": 16}},
    "norms of heads": {"attention": {"qk_norm": True, "qkv_bias": True}},
    "capped": {"attention": {"softcap": 5.0, "sinks": True, "output_bias": True}},
    "gpt": {"positions": "learned", "norm": {"name": "layer"}, "feed_forward": {"activation": "gelu"}},
    "geglu": {"positions": "alibi", "feed_forward": {"activation": "geglu"}},
    "experts": {"experts": {"count": 4, "top": 2, "ffn_width": 32, "shared": 1}},
}


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_a_prepared_model_gives_what_it_gave(shape: str) -> None:
    model, ids = lively(**SHAPES[shape]), torch.arange(1, 41)[None]
    places, attend = torch.arange(40)[None], packed(torch.zeros(1, 40))
    before = model.logits(model(ids, places, attend))
    prepared = prepare(model, "plain")
    assert torch.allclose(prepared.logits(prepared(ids, places, attend)), before, atol=2e-4)


def test_one_thread_gives_what_two_give() -> None:
    code = (
        "import torch; from llmctl.inference import kernel; from llmctl.model.attention import PLAIN; "
        "g = torch.Generator().manual_seed(0); q = torch.randn(7, 9, 64, generator=g); "
        "data = torch.randn(40, 16, 6, 64, generator=g); places = torch.tensor([(0, 9 * i + 1) for i in range(7)]); "
        "rows = kernel.Rows(torch.arange(40, dtype=torch.int32)[None], places.int()); "
        "print(kernel.attend(q, data, None, rows, PLAIN).double().sum().item())"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code], env=environment(OMP_NUM_THREADS=number), capture_output=True, check=True
        ).stdout
        for number in ("1", "2")
    ]
    assert said[0] == said[1]
    assert said[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_that_divide_the_rows_of_a_step_change_nothing(dtype: torch.dtype) -> None:
    asked = [Request([1, 9 + place % 5, 60 + place], max_tokens=12, seed=place, logprobs=0) for place in range(40)]
    before, answers = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with Engine(prepare(lively().to(dtype), "plain"), None, max_running=40) as engine:
                answers.append(engine.generate(asked))
    finally:
        torch.set_num_threads(before)
    assert answers[0] == answers[1] == answers[2]
    assert len({answer.token_ids for answer in answers[0]}) == 40


def test_the_kernel_is_for_a_cpu_and_whole_lanes() -> None:
    assert kernel.serves_heads(torch.zeros(1, 1, 2, 64))
    assert not kernel.serves_heads(torch.zeros(1, 1, 2, 24))
    assert not kernel.serves_heads(torch.zeros(1, 1, 2, 64, dtype=torch.float64))
    model = Transformer(ModelConfig.model_validate("nano"), VOCAB).half()
    assert prepare(model, "plain") is model


def builds() -> list[str]:
    """Those that this machine runs."""
    return list(native.BUILDS[: compiled.library(native.__file__, "native").level() + 1])


@pytest.mark.parametrize("build", native.BUILDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_build_gives_the_same(build: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if build not in builds():
        pytest.skip("for another processor")
    monkeypatch.setattr(kernel, "library", lambda: compiled.library(kernel.__file__, f"kernel{build}"))
    for outputs, width in ((32, 64), (70, 46), (7, 2), (320, 192)):
        weight, bias, x = (drawn(*shape).to(dtype) for shape in ((outputs, width), (outputs,), (41, width)))
        packed = kernel.pack([weight])
        for rows in (1, 2, 3, 8, 13, 41):
            ours = kernel.linear(x[:rows], packed, bias, outputs)
            close(ours, functional.linear(x[:rows].double(), weight.double(), bias.double()), dtype)
            assert torch.equal(ours[0], kernel.linear(x[:1], packed, bias, outputs)[0])  # whatever is beside it
    q, data = drawn(6, 4, 64, seed=1).to(dtype), drawn(9, 16, 4, 64, seed=2).to(dtype)
    tables, places = torch.arange(9).view(1, 9), torch.tensor([(0, seen) for seen in (1, 15, 16, 17, 90, 144)])
    ours = kernel.attend(q, data, None, kernel.Rows(tables.int(), places.int()), PLAIN)
    close(ours, by_reference(q, data, tables, places, PLAIN), dtype)


def test_layers_that_become_one_lie_behind_one_another() -> None:
    for sizes in ((64, 32, 33), (20, 12, 5)):
        weights, x = [drawn(size, 24, seed=size) for size in sizes], drawn(3, 24)
        ours = kernel.linear(x, kernel.pack(weights), None, sum(sizes))
        close(ours, torch.cat([functional.linear(x.double(), weight.double()) for weight in weights], -1), x.dtype)
