"""Whole steps in C, against the same steps layer by layer: the same answers to the last bit."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from llmctl.inference.decoder import Decoder
from llmctl.inference.engine import Engine
from llmctl.inference.linears import prepare
from llmctl.inference.options import Options
from llmctl.inference.request import Completion, Request
from llmctl.model.transformer import Transformer
from tests.inference.conftest import VOCAB, lively

SHAPES = {
    "plain": {},
    "biased": {"attention": {"qkv_bias": True, "output_bias": True}, "tied_embeddings": False},
    "window": {"attention": {"window": 9, "softcap": 5.0}, "scale": {"embedding": 2.5}},
    "wide": {"heads": 2, "kv_heads": 1, "head_width": 32},
}
ASKED = [
    Request(
        [1, 9 + place % 5, *range(60, 60 + place % 7)],
        max_tokens=1 + place % 41,
        min_tokens=place % 3,
        temperature=(1.0, 0.0, 0.7)[place % 3],
        top_k=(0, 5)[place % 2],
        top_p=(1.0, 0.9, 0.5)[place % 3],
        min_p=(0.0, 0.1)[place // 20],
        seed=place,
        stop_ids=tuple(range(place, VOCAB, 40)),
        logprobs=(0, None)[place % 5 == 0],
        logprobs_of=("raw", "sampled")[place % 2],
    )
    for place in range(40)
]


def answered(
    model: Transformer, requests: Sequence[Request], running: int = 40, options: Options | None = None
) -> list[Completion]:
    with Engine(model, None, max_running=running, options=options or Options()) as engine:
        return engine.generate(requests)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_at_once_are_steps_layer_by_layer(
    shape: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = prepare(lively(**SHAPES[shape]).to(dtype), "plain")
    ours = answered(model, ASKED)
    assert {answer.finish_reason for answer in ours} == {"stop", "length"}
    few = answered(model, ASKED, running=3)
    with Engine(model, None, max_running=40) as engine:
        assert engine._scheduler.runner.decoder is not None
        handles = [engine.submit(request) for request in ASKED]
        told = [handle.result() for handle in handles]
    monkeypatch.setattr(Decoder, "fits", lambda *_: False)
    theirs = answered(model, ASKED)
    assert ours == theirs
    if dtype == torch.float32:  # prompts beside others are rounded otherwise
        assert [one.token_ids for one in few] == [one.token_ids for one in theirs]
        assert [one.token_ids for one in told] == [one.token_ids for one in theirs]


def test_blocks_that_run_out_end_steps_at_once() -> None:
    model = prepare(lively(), "plain")
    asked = [Request([1, *range(10, 20)], max_tokens=60, seed=seed, stop_ids=()) for seed in range(4)]
    with Engine(model, None, max_running=4, options=Options(cache_tokens=112)) as tight:
        ours = tight.generate(asked)
        assert tight.counts.preemptions > 0
    assert [one.token_ids for one in ours] == [one.token_ids for one in answered(model, asked)]


def test_what_was_said_is_found_again() -> None:
    with Engine(prepare(lively(), "plain"), None, max_running=2) as engine:
        said = engine.generate([Request([1, 2, 3], max_tokens=40, seed=0, stop_ids=())])[0]
        engine.generate([Request([1, 2, 3, *said.token_ids], max_tokens=1, stop_ids=())])
        assert engine.counts.prefix_hits == 32


@pytest.mark.parametrize("shape", ["gpt", "head norms", "scaled", "eight bits", "cache"])
def test_other_models_go_layer_by_layer(shape: str) -> None:
    given: dict[str, object] = {
        "gpt": {"positions": "learned", "norm": {"name": "layer"}},
        "head norms": {"attention": {"qk_norm": True}},
        "scaled": {"scale": {"logits": 0.5}},
    }.get(shape, {})
    model = prepare(lively(**given), "int8" if shape == "eight bits" else "plain")
    options = Options(cache_bits=8 if shape == "cache" else None)
    with Engine(model, None, max_running=2, options=options) as engine:
        assert engine._scheduler.runner.decoder is None
        assert len(engine.generate([Request([1, 2], max_tokens=3, stop_ids=())])[0].token_ids) == 3


@pytest.mark.parametrize("threads", [1, 2])
def test_logits_that_are_no_numbers_are_an_error(threads: int) -> None:
    model = lively(tied_embeddings=False)
    with torch.no_grad():
        model.embed_tokens.weight[3:] = torch.nan  # of nearly all that may be chosen
    asked = [Request([1, 2], max_tokens=9, seed=seed, stop_ids=()) for seed in range(30)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with Engine(prepare(model, "plain"), None, max_running=30) as engine:
            assert len(engine.generate([replace(one, max_tokens=1) for one in asked])) == 30
            with pytest.raises(FloatingPointError, match="not finite"):
                engine.generate(asked)
    finally:
        torch.set_num_threads(before)
