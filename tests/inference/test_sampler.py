"""What the sampler draws from, exactly; and that it draws from it."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.config.errors import UsageError
from llmctl.inference.adjust import Turn
from llmctl.inference.request import Request
from llmctl.inference.sampler import FIRST_CANDIDATES, Numbers, draw, probabilities

LOGITS = torch.tensor([[0.5, 2.0, -1.0, 1.0, 1.5, -3.0]])
P = LOGITS[0].double().softmax(-1)


def request(**settings: object) -> Request:
    return Request(prompt_ids=[1], **settings)  # type: ignore[arg-type]


def sample(logits: torch.Tensor, requests: Sequence[Request], numbers: Sequence[float]) -> list[int]:
    return draw(logits, [Turn(asked, number) for asked, number in zip(requests, numbers, strict=True)]).tokens


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
    numbers = Numbers(7)
    drawn = sample(LOGITS.repeat(draws, 1), [request(temperature=0.8)] * draws, [numbers.at(i) for i in range(draws)])
    counts = np.bincount(drawn, minlength=size)
    expected = (LOGITS[0].double() / 0.8).softmax(-1).numpy() * draws
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 20.5  # the 0.999 quantile at 5 degrees of freedom


def test_numbers_are_those_of_the_place() -> None:
    forwards, backwards = Numbers(3), Numbers(3)
    assert [forwards.at(i) for i in range(5)] == [backwards.at(i) for i in (4, 3, 2, 1, 0)][::-1]
    assert Numbers(None).at(0) != Numbers(None).at(0)


def test_nothing_of_probability_zero_is_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    for value, token in ((0.0, 1), (0.49, 1), (0.5, 3), (math.nextafter(1, 0), 3)):
        assert sample(logits, [request()], [value]) == [token]


def test_a_row_does_not_depend_on_the_others() -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)) * 2
    settings = [
        request(temperature=0.0),
        request(top_k=5),
        request(top_p=0.3),
        request(temperature=2.0),
        request(top_k=200, top_p=0.99),
    ]
    numbers = [0.1, 0.7, 0.3, 0.9, 0.5]
    together = sample(logits, settings, numbers)
    assert together == [sample(logits[i : i + 1], [settings[i]], [numbers[i]])[0] for i in range(5)]
    assert together[0] == int(logits[0].argmax())


def bent(logits: Sequence[float], turn: Turn) -> list[float]:
    """Penalties, biases and bans by their definitions."""
    asked, scores = turn.request, list(map(float, logits))
    for index in {*asked.prompt_ids, *turn.generated}:
        scores[index] *= 1 / asked.repetition_penalty if scores[index] > 0 else asked.repetition_penalty
    for index, count in turn.generated.items():
        scores[index] -= asked.frequency_penalty * count + asked.presence_penalty
    for index, bias in asked.logit_bias.items():
        scores[index] += bias
    allowed = set(range(len(scores)) if asked.allowed_ids is None else asked.allowed_ids)
    allowed -= {*asked.banned_ids, *turn.early}
    return [score if index in allowed else -math.inf for index, score in enumerate(scores)]


def fewest(mass: list[float], key: Sequence[float], least: float) -> list[float]:
    """Those with the smallest keys until `least` of the mass is reached, and what ties with the last; of sum 1."""
    total, sums = math.fsum(mass), 0.0
    for index in sorted((index for index, one in enumerate(mass) if one), key=lambda index: key[index]):
        sums += mass[index] / total
        if least < 1 and sums >= least - 1e-9:
            mass = [one if one and key[place] <= key[index] + 1e-12 else 0.0 for place, one in enumerate(mass)]
            break
    return [one / math.fsum(mass) for one in mass]


def reference(logits: Sequence[float], turn: Turn) -> list[float]:
    """The distribution by its definition, in fp64 and one id after the other."""
    asked, scores = turn.request, bent(logits, turn)
    if asked.temperature == 0:
        return [float(index == int(np.argmax(scores))) for index in range(len(scores))]
    best = max(scores)
    mass = [math.exp((score - best) / asked.temperature) for score in scores]
    if asked.top_k:
        least = sorted(mass, reverse=True)[min(asked.top_k, len(mass)) - 1]
        mass = [one if one >= least else 0.0 for one in mass]
    mass = fewest(mass, [-one for one in mass], asked.top_p)
    mass = [one if one >= asked.min_p * max(mass) else 0.0 for one in mass]
    mass = [one / math.fsum(mass) for one in mass]
    entropy = -math.fsum(one * math.log(one) for one in mass if one)
    return fewest(mass, [abs(-math.log(one) - entropy) if one else math.inf for one in mass], asked.typical_p)


SETTINGS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.3},
    {"top_k": 4},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"typical_p": 0.5},
    {"top_k": 9, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.8, "temperature": 1.7},
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 0.7, "temperature": 0.0},
    {"presence_penalty": 0.8},
    {"frequency_penalty": -0.4},
    {"frequency_penalty": 1.1, "presence_penalty": -0.3, "logit_bias": {3: 2.0, 5: -1.0}},
    {"logit_bias": {0: 50.0}, "temperature": 0.0},
    {"allowed_ids": [2, 3, 11]},
    {"banned_ids": [0, 1, 2, 3]},
    {"allowed_ids": [4, 5], "banned_ids": [4], "top_p": 0.5},
]


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_every_setting_gives_its_definition(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(SETTINGS), 12, generator=generator) * 2
    turns = [
        Turn(
            Request([1, 4, 4], logprobs=12, logprobs_of="sampled", **some),  # type: ignore[arg-type]
            number,
            Counter({int(index): int(index) % 3 + 1 for index in torch.randint(12, (3,), generator=generator)}),
            (7, 8) if place % 2 else (),
        )
        for place, (some, number) in enumerate(
            zip(SETTINGS, torch.rand(len(SETTINGS), generator=generator).tolist(), strict=True)
        )
    ]
    drawn = draw(logits, turns)
    for row, turn in enumerate(turns):
        expected = reference(logits[row].tolist(), turn)
        sums = np.cumsum(expected)
        token, entry = drawn.tokens[row], drawn.logprobs[row]
        assert entry is not None
        if turn.request.temperature > 0:
            assert sums[token] - expected[token] - 1e-5 <= turn.number <= sums[token] + 1e-5
        assert expected[token] > 0
        assert entry.logprob == pytest.approx(math.log(expected[token]), abs=1e-4)
        got = dict(entry.top)
        assert set(got) == {index for index, one in enumerate(expected) if one}
        assert all(got[index] == pytest.approx(math.log(expected[index]), abs=1e-4) for index in got)


def test_raw_logprobs_ignore_everything_that_changes_the_choice() -> None:
    asked = [
        request(temperature=0.1, top_k=1, logprobs=3, logit_bias={4: 100.0}),
        request(),
        request(logprobs=0, allowed_ids=[5]),
    ]
    drawn = draw(LOGITS.repeat(3, 1), [Turn(one, 0.5) for one in asked])
    first, none, last = drawn.logprobs
    assert none is None
    assert first is not None
    assert last is not None
    assert first.token == 4
    assert first.logprob == pytest.approx(math.log(P[4].item()), abs=1e-6)
    assert [index for index, _ in first.top] == [1, 4, 3]
    assert [value for _, value in first.top] == pytest.approx([math.log(P[i].item()) for i in (1, 4, 3)], abs=1e-6)
    assert (last.token, last.top) == (5, ())
    assert last.logprob == pytest.approx(math.log(P[5].item()), abs=1e-6)


def test_nothing_left_is_said_and_what_is_early_comes_if_nothing_else_can() -> None:
    nothing = Turn(request(), 0.5, allowed=torch.zeros(6, dtype=torch.bool))
    only_early = Turn(request(allowed_ids=[2, 3]), 0.5, early=(2, 3))
    assert draw(LOGITS.repeat(3, 1), [nothing, Turn(request(temperature=0.0)), only_early]).tokens == [-1, 1, 3]


@pytest.mark.parametrize(
    ("some", "says"),
    [
        ({"min_p": 1.5}, "min_p"),
        ({"typical_p": 0.0}, "typical_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"presence_penalty": math.nan}, "presence_penalty"),
        ({"frequency_penalty": math.inf}, "frequency_penalty"),
        ({"logit_bias": {1: math.nan}}, "logit_bias"),
        ({"allowed_ids": []}, "allowed_ids"),
        ({"allowed_ids": [3], "banned_ids": [3]}, "allowed_ids"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"logprobs_of": "both"}, "logprobs_of"),
    ],
)
def test_settings_out_of_bounds_are_refused(some: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        request(**some)


def test_broken_logits_are_refused() -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        sample(torch.full((1, 4), torch.nan), [request(temperature=0.0)], [0.0])


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-38, 1e-45, 1e-60])
@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_a_tiny_temperature_takes_the_likeliest(temperature: float, settings: dict[str, float]) -> None:
    asked = request(temperature=temperature, **settings)
    for shift in (-50.0, 0.0, 50.0):
        assert [sample(LOGITS + shift, [asked], [number / 5]) for number in range(5)] == [[1]] * 5
