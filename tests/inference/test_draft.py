"""Guesses make no difference to an answer, and are told apart from what was right."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from llmctl.config.errors import InputError
from llmctl.inference.engine import Engine
from llmctl.inference.linears import prepare
from llmctl.inference.options import Options
from llmctl.inference.request import Request
from llmctl.model.attention import packed
from llmctl.model.transformer import Transformer
from tests.inference.conftest import VOCAB, lively
from tests.inference.test_scheduling import SHAPES, drawn_requests, same, same_but_for_borders

LOOKUP = Options(draft_tokens=4)


def nearly(model: Transformer, spread: float) -> Transformer:
    """A model with the weights of another and some noise, which guesses right more often than not."""
    other = Transformer(model.config, VOCAB)
    other.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread * parameter.std())
    return other


@pytest.fixture(params=["lookup", "itself", "nearly", "other"])
def options(request: pytest.FixtureRequest) -> Options:
    model = lively()
    drafts = {"lookup": None, "itself": model, "nearly": nearly(model, 0.005), "other": lively(seed=5, layers=1)}
    return Options(draft_tokens=4, draft=drafts[request.param])


def test_answers_are_those_without_guesses(options: Options) -> None:
    requests = [
        *drawn_requests(3, 6),
        *(replace(one, frequency_penalty=-9.0) for one in drawn_requests(4, 3)),  # these repeat themselves
    ]
    with Engine(lively(), None, max_running=1) as engine:
        plain = [engine.generate([request])[0] for request in requests]
    for more in ({}, {"cache_tokens": 96}, {"step_tokens": 16}):
        with Engine(lively(), None, max_running=5, options=replace(options, **more)) as engine:
            same(engine.generate(requests), plain)
            same([engine.generate([request])[0] for request in requests], plain)
            assert 0 <= engine.counts.accepted <= engine.counts.drafted
            assert engine.counts.drafted > 0
            assert engine.cache_usage == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_guesses_change_nothing_in_any_family(shape: str) -> None:
    model = prepare(lively(**SHAPES[shape]), "plain")
    requests = [replace(one, frequency_penalty=-9.0) for one in drawn_requests(4, 5)]  # these repeat themselves
    with Engine(model, None, max_running=1) as engine:
        plain = [engine.generate([request])[0] for request in requests]
    with Engine(model, None, max_running=3, options=LOOKUP) as engine:
        same_but_for_borders(engine.generate(requests), plain, requests, model)
        assert 0 < engine.counts.accepted <= engine.counts.drafted


def acceptance(options: Options, **settings: float) -> float:
    with Engine(lively(), None, options=options) as engine:
        asked = [Request([1, 7, seed], max_tokens=60, seed=seed, stop_ids=(), **settings) for seed in range(8)]  # type: ignore[arg-type]
        engine.generate(asked)
        return engine.counts.accepted / engine.counts.drafted


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_guesses_itself_right(temperature: float) -> None:
    model = lively()
    assert acceptance(Options(draft_tokens=4, draft=model), temperature=temperature) == 1.0
    near = acceptance(Options(draft_tokens=4, draft=nearly(model, 0.005)), temperature=temperature)
    strange = acceptance(Options(draft_tokens=4, draft=lively(seed=5)), temperature=temperature)
    assert 1.0 > near > strange
    assert near > 0.3


def test_what_repeats_is_looked_up() -> None:
    prompt = [1, *([9, 8, 7, 6, 5, 4] * 5)]
    favoured = dict.fromkeys((9, 8, 7, 6, 5, 4), 80.0)
    asked = Request(prompt, max_tokens=40, temperature=0.0, stop_ids=(), logit_bias=favoured, frequency_penalty=-9.0)
    with Engine(lively(), None, options=LOOKUP) as engine:
        events = list(engine.submit(asked))
        assert engine.counts.accepted > 10
        assert len(events) == 40 - engine.counts.accepted
        assert max(len(event.token_ids) for event in events) > 2


def test_drawn_tokens_follow_the_model_whatever_guesses() -> None:
    model, prompt, count = lively(), [1, 7, 7], 3000
    options = Options(draft_tokens=3, draft=nearly(model, 0.05))
    with Engine(model, None, max_running=64, options=options) as engine:
        asked = [
            Request(prompt, max_tokens=3, temperature=0.5, top_k=4, seed=seed, stop_ids=()) for seed in range(count)
        ]
        pairs = Counter(answer.token_ids[:2] for answer in engine.generate(asked))
        assert engine.counts.accepted > 0
    rows = torch.tensor([[*prompt, first] for first, _ in pairs])
    with torch.inference_mode():
        hidden = model(rows, torch.arange(4).expand_as(rows), packed(torch.zeros_like(rows)))
        logits = model.logits(hidden)[:, 2:] / 0.5  # behind the prompt, and behind the first token too
    logits = logits.masked_fill(logits < logits.topk(4).values[..., -1:], -torch.inf)
    first, second = logits.double().softmax(-1).unbind(1)
    expected = np.array(
        [first[row, pair[0]].item() * second[row, pair[1]].item() * count for row, pair in enumerate(pairs)]
    )
    seen = np.array(list(pairs.values()))
    assert expected.sum() == pytest.approx(count, rel=0.02)  # pairs that were never drawn are rare ones
    often = expected >= 5
    chi_square = float(((seen - expected) ** 2 / expected)[often].sum())
    degrees = int(often.sum()) - 1
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)  # four deviations


@pytest.mark.parametrize(("draft", "says"), [({"context": 48}, "reads 48 tokens"), ({}, "has 600 ids")])
def test_a_draft_that_does_not_fit_is_refused(draft: dict[str, int], says: str) -> None:
    config = lively(**draft).config
    with pytest.raises(InputError, match=says):
        Engine(lively(), None, options=Options(draft_tokens=2, draft=Transformer(config, VOCAB if draft else 600)))
