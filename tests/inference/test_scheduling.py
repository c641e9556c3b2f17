"""An answer does not depend on what else runs, on chunks, on cached prefixes, or on blocks that ran out."""

import functools
import random
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmctl.inference.engine import Engine
from llmctl.inference.linears import prepare
from llmctl.inference.options import Options
from llmctl.inference.request import Completion, Request
from llmctl.inference.sampler import Numbers
from llmctl.model.attention import packed
from llmctl.model.transformer import Transformer
from tests.inference.conftest import VOCAB, lively

SHAPES = {
    "grouped": {"kv_heads": 2},
    "latent": {"kv_heads": 4, "head_width": 24, "latent": {"kv_rank": 12, "rope_width": 8, "value_width": 16}},
    "window": {"attention": {"window": 9}},
    "capped": {"attention": {"softcap": 5.0, "sinks": True, "output_bias": True}},
    "head norms": {"attention": {"qk_norm": True, "qkv_bias": True}, "norm": {"name": "rms", "place": "sandwich"}},
    "gpt": {"positions": "learned", "norm": {"name": "layer"}, "feed_forward": {"activation": "gelu"}},
    "alibi": {"positions": "alibi", "feed_forward": {"activation": "geglu"}},
    "experts": {"experts": {"count": 4, "top": 2, "ffn_width": 32, "shared": 1}},
}
"""What families differ in, as far as a step notices it."""


def drawn_requests(seed: int, count: int) -> list[Request]:
    """Some begin alike; some are greedy, some are not."""
    drawn = random.Random(seed)
    common = [drawn.randrange(VOCAB) for _ in range(40)]
    return [
        Request(
            [
                *common[: drawn.choice((0, 0, 16, 17, 40))],
                *(drawn.randrange(VOCAB) for _ in range(drawn.randint(1, 30))),
            ],
            max_tokens=drawn.randint(1, 24),
            temperature=drawn.choice((0.0, 0.8)),
            seed=drawn.randrange(1000),
            stop_ids=(),
            logprobs=1,
            prompt_logprobs=drawn.choice((None, None, 0)),
        )
        for _ in range(count)
    ]


def same(ours: Sequence[Completion], theirs: Sequence[Completion]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.token_ids == other.token_ids
        assert one.finish_reason == other.finish_reason
        for a, b in ((one.logprobs, other.logprobs), (one.prompt_logprobs, other.prompt_logprobs)):
            numbers = [[entry.logprob for entry in some or () if entry is not None] for some in (a, b)]
            assert numbers[0] == pytest.approx(numbers[1], abs=1e-5, rel=1e-5)


def on_the_border(model: Transformer, request: Request, tokens: Sequence[int], other: int) -> bool:
    """Whether rounding alone decides between the last of `tokens` and another id in its place."""
    ids = [*request.prompt_ids, *tokens[:-1]]
    row = torch.tensor([ids])
    with torch.inference_mode():
        hidden = model(row, torch.arange(len(ids))[None], packed(torch.zeros_like(row)))
        logits = model.logits(hidden)[0, -1].double()
    if request.temperature == 0:
        return abs(float(logits[tokens[-1]] - logits[other])) < 1e-4
    sums = (logits / request.temperature).softmax(-1).cumsum(0)
    number = Numbers(request.seed).at(len(tokens) - 1)
    first, last = sorted((tokens[-1], other))
    return bool((sums[first:last] - number).abs().max() < 1e-5)


def same_but_for_borders(
    ours: Sequence[Completion], theirs: Sequence[Completion], requests: Sequence[Request], model: Transformer
) -> None:
    """As `same`; where a number falls onto the border between two tokens, what follows is not compared."""
    for one, other, request in zip(ours, theirs, requests, strict=True):
        pairs = enumerate(zip(one.token_ids, other.token_ids, strict=False))
        place = next((index for index, (mine, yours) in pairs if mine != yours), None)
        if place is None:
            same([one], [other])
        else:
            assert on_the_border(model, request, one.token_ids[: place + 1], other.token_ids[place])


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=3)
@given(seed=st.integers(0, 10_000), step=st.integers(1, 60), prefixes=st.booleans())
def test_answers_are_those_of_each_request_alone(shape: str, seed: int, step: int, prefixes: bool) -> None:
    requests = drawn_requests(seed, 7)
    model = prepare(lively(**SHAPES[shape]), "plain")
    with Engine(model, None, max_running=1, options=Options(prefix_cache=False)) as engine:
        alone = [engine.generate([request])[0] for request in requests]
    # Six blocks are one context's: with several sequences they run out.
    for tokens in (None, 96):
        options = Options(cache_tokens=tokens, step_tokens=step, prefix_cache=prefixes)
        with Engine(model, None, max_running=5, options=options) as engine:
            same_but_for_borders(engine.generate(requests), alone, requests, model)
            same_but_for_borders(engine.generate(requests[::-1]), alone[::-1], requests[::-1], model)
            assert engine.cache_usage == 0


def test_blocks_that_run_out_are_taken_from_the_youngest() -> None:
    requests = [Request([1, *range(10, 20)], max_tokens=60, seed=seed, stop_ids=()) for seed in range(4)]
    model = lively()
    with (
        Engine(model, None, max_running=4) as roomy,
        Engine(model, None, max_running=4, options=Options(cache_tokens=96)) as tight,
    ):
        assert tight.generate(requests) == roomy.generate(requests)
        assert roomy.counts.preemptions == 0
        assert tight.counts.preemptions > 0
        assert tight.cache_usage == 0


def test_a_prefix_is_computed_once() -> None:
    prompt = list(range(1, 60))
    with Engine(lively(), None, max_running=4) as engine:
        first, again = (Request(prompt, max_tokens=2, temperature=0.0, stop_ids=()) for _ in range(2))
        together = engine.generate([first, again])
        assert together[0] == together[1]
        assert engine.counts.prefix_hits == 59  # of the second, in the same step: all of it
        assert engine.counts.prefix_queries == 118
        engine.generate([replace(first, prompt_ids=[*prompt, 7, 8, 9, 10, 11, 12])])
        assert engine.counts.prefix_hits == 59 + 48  # three full blocks of sixteen
        engine.generate([replace(first, prompt_ids=[2, *prompt])])
        assert engine.counts.prefix_hits == 59 + 48


@pytest.mark.parametrize("length", [1, 15, 16, 47, 48, 49])
@pytest.mark.parametrize(
    "options", [Options(), Options(step_tokens=20), Options(cache_bits=8), Options(draft_tokens=2)]
)
def test_several_answers_to_one_prompt_compute_it_once(
    length: int, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, run = prepare(lively(kv_heads=2), "plain"), []

    def forward(self: Transformer, tokens: Tensor, *given: Tensor) -> Tensor:
        run.append(tokens.shape[1])
        return type(model).forward(self, tokens, *given)

    prompts = [[place + 1, *range(20, 19 + length)] for place in range(3)]
    asked = [
        Request(prompt, max_tokens=20, seed=seed, stop_ids=(), logprobs=0) for prompt in prompts for seed in range(4)
    ]
    with Engine(model, None, max_running=1, options=replace(options, prefix_cache=False)) as engine:
        alone = engine.generate(asked)
    first = [replace(one, max_tokens=1) for one in asked]
    monkeypatch.setattr(model, "forward", functools.partial(forward, model))
    with Engine(model, None, max_running=12, options=options) as engine:
        engine.generate(first)
        assert sum(run) == 3 * length
        assert engine.counts.prefix_hits == 3 * 3 * length
        same_but_for_borders(engine.generate(asked), alone, asked, model)
        assert engine.cache_usage == 0


def test_twins_have_blocks_of_their_own_or_wait() -> None:
    asked = [Request([1, *range(10, 50)], max_tokens=50, seed=seed, stop_ids=()) for seed in range(5)]
    for tokens in (96, 112, 160):  # one sequence takes six blocks of sixteen, a second to begin with one beside them
        with Engine(lively(), None, max_running=5, options=Options(cache_tokens=tokens)) as tight:
            ours = tight.generate(asked)
            assert tight.cache_usage == 0
        with Engine(lively(), None, max_running=1, options=Options(prefix_cache=False)) as roomy:
            same_but_for_borders(ours, roomy.generate(asked), asked, roomy.model)


def test_prefixes_of_another_salt_are_not_used() -> None:
    prompt = list(range(1, 60))
    with Engine(lively(), None, max_running=4) as engine:
        for salt in ("a", "b"):
            engine.generate([Request(prompt, max_tokens=2, stop_ids=(), cache_salt=salt)])
        assert engine.counts.prefix_hits == 0
        engine.generate([Request(prompt, max_tokens=2, stop_ids=(), cache_salt="a")])
        assert engine.counts.prefix_hits == 48


def test_a_long_prompt_does_not_stop_the_others() -> None:
    with Engine(lively(context=4096), None, max_running=2, options=Options(step_tokens=16)) as engine:
        running = engine.submit(Request([1], max_tokens=4000, stop_ids=(), seed=0))
        stream = iter(running)
        next(stream)
        long = engine.submit(Request([5] * 3000, max_tokens=1, stop_ids=()))
        started = threading.Event()
        threading.Thread(target=lambda: (long.result(), started.set())).start()
        tokens = 0
        while not started.is_set():
            next(stream)
            tokens += 1
        assert tokens > 100  # 3000 prompt tokens take 200 steps at 15 a step
        running.cancel()


def test_cancelled_sequences_give_their_blocks_back_at_once() -> None:
    with Engine(lively(context=4096), None, max_running=4) as engine:
        handles = [engine.submit(Request([1] * 100, stop_ids=(), seed=seed)) for seed in range(4)]
        for handle in handles:
            next(iter(handle))
        assert engine.cache_usage > 0
        for handle in handles:
            handle.cancel()
        for handle in handles:
            assert handle.result().finish_reason == "cancelled"
        assert engine.cache_usage == 0
        assert engine.running == 0
