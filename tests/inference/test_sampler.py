"""What the sampler draws from, exactly; and that it draws from it."""

import math

import numpy as np
import pytest
import torch

from llmctl.inference.request import Request
from llmctl.inference.sampler import FIRST_CANDIDATES, probabilities, raw_logprobs, sample, uniforms

LOGITS = torch.tensor([[0.5, 2.0, -1.0, 1.0, 1.5, -3.0]])
P = LOGITS[0].double().softmax(-1)


def request(**settings: object) -> Request:
    return Request(prompt_ids=[1], **settings)  # type: ignore[arg-type]


def kept(logits: torch.Tensor, **settings: object) -> list[int]:
    return probabilities(logits, [request(**settings)])[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("top_k", "ids"), [(1, [1]), (2, [1, 4]), (3, [1, 3, 4]), (6, [0, 1, 2, 3, 4, 5]), (99, [0, 1, 2, 3, 4, 5])]
)
def test_top_k_keeps_exactly_the_likeliest(top_k: int, ids: list[int]) -> None:
    assert kept(LOGITS, top_k=top_k) == ids


def test_top_p_keeps_exactly_the_nucleus() -> None:
    order = P.argsort(descending=True)
    sums = P[order].cumsum(0)
    for count in range(1, 6):
        just_enough, a_bit_more = sums[count - 1].item() - 1e-6, sums[count - 1].item() + 1e-6
        assert kept(LOGITS, top_p=just_enough) == sorted(order[:count].tolist())
        assert kept(LOGITS, top_p=a_bit_more) == sorted(order[: count + 1].tolist())
    assert kept(LOGITS, top_p=1.0) == [0, 1, 2, 3, 4, 5]
    assert kept(LOGITS, top_p=1e-9) == [1]


def test_a_nucleus_wider_than_the_first_look() -> None:
    flat = torch.linspace(0, 0.01, 10 * FIRST_CANDIDATES)[None]
    sums = flat[0].double().softmax(-1).flip(0).cumsum(0)
    expected = int((sums < 0.7).sum()) + 1
    assert len(kept(flat, top_p=0.7)) == pytest.approx(expected, abs=1)
    assert len(kept(flat, top_p=0.7)) > FIRST_CANDIDATES


def test_ties_at_the_border_stay_together() -> None:
    tied = torch.tensor([[1.0, 2.0, 1.0, 0.0, 1.0]])
    assert kept(tied, top_k=2) == [0, 1, 2, 4]
    assert kept(tied, top_p=0.5) == [0, 1, 2, 4]


def test_temperature_comes_before_top_k_and_top_k_before_top_p() -> None:
    mass = probabilities(LOGITS, [request(temperature=0.5, top_k=3, top_p=0.9)])[0].double()
    hot = (LOGITS[0].double() / 0.5).softmax(-1)
    among = hot * torch.tensor([0, 1, 0, 1, 1, 0])
    among /= among.sum()
    assert (among[1] + among[4]).item() > 0.9
    expected = among * torch.tensor([0, 1, 0, 0, 1, 0])
    assert torch.allclose(mass, expected, atol=1e-6)


def test_draws_follow_the_distribution() -> None:
    draws, size = 4000, LOGITS.shape[-1]
    stream = uniforms(7)
    settings = request(temperature=0.8)
    counts = np.zeros(size)
    for _ in range(draws // 100):
        counts += np.bincount(sample(LOGITS.repeat(100, 1), [settings] * 100, [stream] * 100), minlength=size)
    expected = (LOGITS[0].double() / 0.8).softmax(-1).numpy() * draws
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 20.5  # the 0.999 quantile at 5 degrees of freedom


def test_nothing_of_probability_zero_is_drawn() -> None:
    class Edge:
        def __init__(self, value: float) -> None:
            self.value = value

        def random(self) -> float:
            return self.value

    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    for value, token in ((0.0, 1), (0.49, 1), (0.5, 3), (math.nextafter(1, 0), 3)):
        assert sample(logits, [request()], [Edge(value)]) == [token]  # type: ignore[list-item]


def test_a_row_does_not_depend_on_the_others() -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)) * 2
    settings = [
        request(temperature=0.0),
        request(top_k=5, seed=1),
        request(top_p=0.3, seed=2),
        request(temperature=2.0, seed=3),
        request(top_k=200, top_p=0.99, seed=4),
    ]
    together = sample(logits, settings, [uniforms(s.seed or 0) for s in settings])
    alone = [sample(logits[i : i + 1], [s], [uniforms(s.seed or 0)])[0] for i, s in enumerate(settings)]
    assert together == alone
    assert together[0] == int(logits[0].argmax())


def test_raw_logprobs_ignore_temperature_and_truncation() -> None:
    settings = [request(temperature=0.1, top_k=1, logprobs=3), request(), request(logprobs=0)]
    table = raw_logprobs(LOGITS.repeat(3, 1), [4, 1, 5], settings)
    assert table[1] is None
    assert table[0] is not None
    assert table[2] is not None
    assert table[0].token == 4
    assert table[0].logprob == pytest.approx(math.log(P[4].item()), abs=1e-6)
    assert [index for index, _ in table[0].top] == [1, 4, 3]
    assert [value for _, value in table[0].top] == pytest.approx([math.log(P[i].item()) for i in (1, 4, 3)], abs=1e-6)
    assert table[2].top == ()
    assert table[2].logprob == pytest.approx(math.log(P[5].item()), abs=1e-6)


def test_broken_logits_are_refused() -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        sample(torch.full((1, 4), torch.nan), [request(temperature=0.0)], [uniforms(0)])


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-38, 1e-45, 1e-60])
@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_a_tiny_temperature_takes_the_likeliest(temperature: float, settings: dict[str, float]) -> None:
    asked = request(temperature=temperature, seed=3, **settings)
    for shift in (-50.0, 0.0, 50.0):
        assert [sample(LOGITS + shift, [asked], [uniforms(seed)]) for seed in range(5)] == [[1]] * 5
