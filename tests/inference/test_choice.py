"""The compiled choice of tokens, against distributions laid out by torch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.data import compiled
from llmctl.inference import kernel
from llmctl.inference.request import Request
from llmctl.inference.sampler import probabilities
from llmctl.model import native
from tests.inference.test_kernel import builds

SETTINGS = [
    {},
    {"temperature": 0.3},
    {"temperature": 1.7, "top_k": 3},
    {"top_k": 40, "top_p": 0.9},
    {"top_p": 0.5},
    {"top_p": 0.999},
    {"min_p": 0.1},
    {"temperature": 0.8, "top_k": 9, "top_p": 0.8, "min_p": 0.2},
]


def manner(number: float, wanted: int, **given: float) -> kernel.Manner:
    asked = Request([1], **given)  # type: ignore[arg-type]
    return number, asked.temperature, asked.top_k, asked.top_p, asked.min_p, wanted


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    vocab=st.sampled_from([1, 7, 16, 255, 256, 257, 300, 1000, 4099]),
    spread=st.sampled_from([0.0, 1.0, 6.0]),
    number=st.one_of(st.floats(0, 1, exclude_max=True), st.just(math.nextafter(1, 0))),
)
def test_the_token_is_the_inverse_of_the_distribution(seed: int, vocab: int, spread: float, number: float) -> None:
    logits = torch.randn(len(SETTINGS), vocab, generator=torch.Generator().manual_seed(seed)) * spread + 3
    asked = [Request([1], **some) for some in SETTINGS]  # type: ignore[arg-type]
    mass = probabilities(logits, asked).double()
    mass /= mass.sum(-1, keepdim=True)
    sums, raw = mass.cumsum(-1), logits.double().log_softmax(-1)
    for wanted, table in ((1, raw), (2, mass.log())):
        tokens, told = kernel.choose(logits, logits, [manner(number, wanted, **some) for some in SETTINGS])
        for row, (token, logprob) in enumerate(zip(tokens, told, strict=True)):
            assert mass[row, token] > 0
            assert sums[row, token] - mass[row, token] - 1e-5 <= number <= sums[row, token] + 1e-5
            assert logprob == pytest.approx(table[row, token].item(), abs=2e-5)


@pytest.mark.parametrize("build", native.BUILDS)
@pytest.mark.parametrize("vocab", [5, 256, 1003])
def test_the_likeliest_is_the_first_of_those_that_tie(build: str, vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if build not in builds():
        pytest.skip("for another processor")
    monkeypatch.setattr(kernel, "library", lambda: compiled.library(kernel.__file__, f"kernel{build}"))
    logits = torch.randn(40, vocab, generator=torch.Generator().manual_seed(vocab)).round()
    first = [row.index(max(row)) for row in logits.tolist()]
    assert kernel.choose(logits, logits, [manner(0.5, 0, temperature=0.0)] * 40) == (first, [0.0] * 40)


@pytest.mark.parametrize("temperature", [1e38, 1e39, 1e300])
def test_the_hottest_temperatures_draw_evenly(temperature: float) -> None:
    logits = torch.randn(1, 10, generator=torch.Generator().manual_seed(0))
    drawn = [
        kernel.choose(logits, logits, [manner(number / 10 + 0.05, 0, temperature=temperature)])[0][0]
        for number in range(10)
    ]
    assert sorted(drawn) == list(range(10))


def test_log_probabilities_are_of_what_the_model_said_or_of_what_was_drawn_from() -> None:
    raw = torch.randn(1, 500, generator=torch.Generator().manual_seed(0))
    bent = raw.clone()
    bent[0, :498] = -torch.inf
    token, told = kernel.choose(bent, raw, [manner(0.0, 1)])
    assert (token, told[0]) == ([498], pytest.approx(raw.double().log_softmax(-1)[0, 498].item(), abs=1e-5))
    token, told = kernel.choose(bent, raw, [manner(0.0, 2)])
    assert (token, told[0]) == ([498], pytest.approx(bent.double().log_softmax(-1)[0, 498].item(), abs=1e-5))
    assert kernel.choose(bent.fill_(-torch.inf), raw, [manner(0.0, 1)])[0] == [-1]


@pytest.mark.parametrize("place", [0, 255, 256, 300])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(place: int, value: float) -> None:
    logits = torch.zeros(3, 301)
    logits[1, place] = value
    with pytest.raises(FloatingPointError, match="not finite"):
        kernel.choose(logits, logits, [manner(0.5, 2)] * 3)
