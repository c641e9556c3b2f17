"""The arithmetic of multiple choice against closed forms and cases worked by hand."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.evals.scoring import best, chance, mean, split_pair


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
def test_mean_and_error_are_those_of_the_statistics_module(values: list[float]) -> None:
    estimate = mean(values)
    assert estimate.value == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert estimate.stderr == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), abs=1e-6)
    assert estimate.n == len(values)


@given(st.integers(0, 100), st.integers(1, 100))
def test_error_of_an_accuracy_has_a_closed_form(right: int, wrong: int) -> None:
    n = right + wrong
    if n < 2:
        return
    p = right / n
    # Sample variance of n zeros and ones is n p (1 - p) / (n - 1).
    assert mean([1.0] * right + [0.0] * wrong).stderr == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))


def test_piqa_two_shot_error_of_the_harness() -> None:
    # lm-evaluation-harness on 1,838 questions, 958 right: 0.5212187159956474 +- 0.011655314732288863.
    estimate = mean([1.0] * 958 + [0.0] * 880)
    assert estimate.value == 0.5212187159956474
    assert estimate.stderr == pytest.approx(0.011655314732288863, abs=1e-12)


def test_one_question_has_no_error() -> None:
    assert mean([1.0]).as_json() == {"value": 1.0, "stderr": None, "n": 1}


def test_best_takes_the_first_of_equals() -> None:
    assert best([-3.0, -1.0, -1.0]) == 1
    assert best([-math.inf, -math.inf]) == 0


def test_chance_is_the_mean_over_questions() -> None:
    assert chance([4, 4, 4]) == 0.25
    assert chance([2, 4]) == 0.375


def codes(text: str) -> list[int]:
    return [ord(character) for character in text]


@pytest.mark.parametrize(
    ("context", "continuation", "before", "after"),
    [
        ("ab", " c", "ab", " c"),
        ("ab ", "c", "ab", " c"),
        ("ab \n", "c", "ab", " \nc"),
        ("", "c", "", "c"),
        ("  ", "c", "", "  c"),
    ],
)
def test_trailing_space_of_the_context_goes_to_the_continuation(
    context: str, continuation: str, before: str, after: str
) -> None:
    assert split_pair(context, continuation, codes) == (codes(before), codes(after))


def test_the_continuation_is_what_follows_the_context_alone() -> None:
    # A tokenizer that merges "bc" into one id: the pair is cut by the length of the context's own ids.
    def merging(text: str) -> list[int]:
        return codes(text.replace("bc", "B"))

    assert split_pair("ab", "cd", merging) == (codes("ab"), codes("d"))
    assert split_pair("a", "bcd", merging) == (codes("a"), codes("Bd"))
