"""Bootstrap, perplexities, pooled errors, filters, comparisons and votes against the harness, or by hand."""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from llmctl.config.tasks import FilterConfig, TaskConfig
from llmctl.evals import scoring
from llmctl.evals.checks import passes
from llmctl.evals.compare import mcnemar, normal
from llmctl.evals.filters import filtered
from llmctl.evals.items import Item
from llmctl.evals.math_answers import boxed, equal
from llmctl.evals.metrics import loss_curve, outcome_of
from llmctl.evals.reasoning import spent
from llmctl.evals.requests import Likely, Written
from llmctl.evals.scoring import Estimate


def test_the_bootstrap_draws_what_python_draws() -> None:
    values = [random.Random(7).gauss(-5, 2) for _ in range(41)]
    figures = []
    for block in range(3):
        chance = random.Random(block)
        figures += [math.exp(-statistics.fmean(chance.choices(values, k=41))) for _ in range(1000)]
    estimate = scoring.perplexity(values, 3000)
    assert estimate.stderr == pytest.approx(statistics.stdev(figures), rel=1e-12)
    assert estimate.value == pytest.approx(math.exp(-statistics.fmean(values)))
    assert scoring.perplexity(values, 0).stderr is None
    assert scoring.perplexity(values[:1], 3000).stderr is None


def test_groups_pool_as_the_harness_does() -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics")
    estimates = [Estimate(0.3, 20, 0.1), Estimate(0.6, 50, 0.07), Estimate(0.5, 5, 0.2)]
    errors, sizes = [one.stderr for one in estimates], [one.n for one in estimates]
    by_size = scoring.pooled(estimates, by_size=True)
    assert by_size.value == pytest.approx(metrics.aggregate_subtask_metrics([one.value for one in estimates], sizes))
    assert by_size.stderr == pytest.approx(metrics.pooled_sample_stderr(errors, sizes), rel=1e-12)
    alike = scoring.pooled(estimates, by_size=False)
    assert (alike.value, alike.n) == (pytest.approx(1.4 / 3), 75)
    assert alike.stderr == pytest.approx(metrics.unweighted_mean_stderr(errors), rel=1e-12)
    assert scoring.pooled([*estimates, Estimate(0.1, 3)], by_size=True).stderr is None


def test_calibration_is_the_mean_distance_in_bins() -> None:
    error, table = scoring.calibration([(0.95, 1.0), (0.92, 0.0), (0.35, 1.0), (1.0, 1.0)])
    assert table == [(0.35, 1.0, 1), (pytest.approx(2.87 / 3), pytest.approx(2 / 3), 3)]
    assert error == pytest.approx((0.65 + 3 * abs(2.87 / 3 - 2 / 3)) / 4)


TEXTS = ["so 3 apples\n#### 1,234.", "no number", "#### -7 and #### 8", "it costs $5.50 or 12"]


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ([{"function": "regex"}], ["1,234.", "[invalid]", "-7", "[invalid]"]),
        (
            [{"function": "regex", "group_select": -1, "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)"}],
            ["1,234.", "[invalid]", "8", "12"],
        ),
        ([{"function": "regex"}, {"function": "take_first"}], ["1,234."]),
        ([{"function": "take_first_k", "k": 2}, {"function": "uppercase"}], [t.upper() for t in TEXTS[:2]]),
        ([{"function": "regex"}, {"function": "majority_vote"}], ["[invalid]"]),
        ([{"function": "math"}], [*TEXTS[:3], TEXTS[3]]),
    ],
)
def test_filters_are_those_of_the_harness(steps: list[dict[str, Any]], found: list[str]) -> None:
    assert filtered(TEXTS, FilterConfig.model_validate({"name": "x", "filter": steps})) == found
    theirs = pytest.importorskip("lm_eval.filters")
    if all(step["function"] != "math" for step in steps):
        from lm_eval.api.instance import Instance

        one = Instance("generate_until", {}, ("",), 0, ("t", 0, 1))
        one.resps = list(TEXTS)
        settings = [[s["function"], {k: v for k, v in s.items() if k != "function"}] for s in steps]
        theirs.build_filter_ensemble("x", settings).apply([one])
        assert one.filtered_resps["x"] == (found[0] if steps[-1]["function"] == "take_first" else found)


MATH = [
    ("\\frac12", "\\frac{1}{2}"), ("\\dfrac{3}{4}", "3/4"), ("0.5", "\\frac{1}{2}"), ("x = 5", "5"), (".5", "0.5"),
    ("10\\text{ cm}", "10"), ("\\sqrt3", "\\sqrt{3}"), ("\\left(1, 2\\right)", "(1,2)"), ("50\\%", "50"), ("2", "3"),
    ("90^\\circ", "90"), ("\\$7", "7"), ("a/b", "a/b"), ("a/b", "\\frac{a}{b}"), ("\\frac1{72}", "\\frac{1}{72}"),
    ("1\\text{ a}\\text{ b}", "1"), ("-1/2", "-\\frac{1}{2}"), ("", ""), ("\\tfrac{a}{b}c", "\\frac{a}{b} c"),
    ("007/2", "7/2"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "target"), MATH)
def test_answers_in_latex_are_equal_where_the_harness_says_so(answer: str, target: str) -> None:
    utils = pytest.importorskip("lm_eval.tasks.hendrycks_math.utils")
    assert equal(answer, target) == utils.is_equiv(answer, target)


def test_the_last_box_holds_the_answer() -> None:
    utils = pytest.importorskip("lm_eval.tasks.hendrycks_math.utils")
    for solution in ("so \\boxed{1} and \\boxed{\\frac{a}{b}}.", "$\\boxed 7$ it is", "none"):
        last = utils.last_boxed_only_string(solution)
        assert boxed(solution) == (utils.remove_boxed(last) if last is not None else "")


def task(**fields: Any) -> TaskConfig:
    return TaskConfig.model_validate({"task": "t", **fields})


def test_choices_are_scored_in_every_way() -> None:
    metrics = ["acc", "acc_norm", "acc_bytes", "acc_mutual_info", "mc2", "ece"]
    config = task(output_type="multiple_choice", doc_to_choice="c", metric_list=metrics)
    item = Item("", 0, "i", {}, (), ("漢字", "abcd"), (1,))
    # -4/2 characters or 6 bytes against -5/4; less the choice alone, 1 against 4.
    likely = [Likely(value, is_greedy=False) for value in (-4.0, -5.0, -5.0, -9.0)]
    outcome = outcome_of(config, item, likely)
    share = 1 / (1 + math.exp(1))
    assert outcome.values == {
        ("acc", ""): 0.0, ("acc_norm", ""): 1.0, ("acc_bytes", ""): 0.0, ("acc_mutual_info", ""): 1.0,
        ("mc2", ""): pytest.approx(share), ("ece", ""): (pytest.approx(1 - share), 0.0),
    }  # fmt: skip
    assert (outcome.prediction, outcome.prediction_norm) == (0, 1)


def test_a_vote_takes_the_commonest_answer_and_counts_tokens() -> None:
    config = task(
        metric_list=["exact_match"],
        repeats=4,
        filter_list=[
            {"name": "number", "filter": [{"function": "regex", "regex_pattern": r"(\d+)"}, {"function": "take_first"}]}
        ],
    )
    item = Item("", 0, "i", {}, (), targets=("7",))
    written = [Written("is 3", 4), Written("none", 2), Written("is 7", 5), Written("7!", 1)]
    outcome = outcome_of(config, item, written)
    assert outcome.values == {("exact_match", "number"): 0.0}
    table = {(one.method, one.texts): (one.tokens, one.share.value) for one in spent([outcome.draws])}
    # Of equals the earliest counts: 3 before 7, until 7 is there twice. One of four is right in half of all pairs.
    assert table == {
        ("vote", 1): (4, 0.0), ("vote", 2): (6, 0.0), ("vote", 4): (12, 1.0),
        ("oracle_pass", 1): (4, 0.5), ("oracle_pass", 2): (6, pytest.approx(5 / 6)), ("oracle_pass", 4): (12, 1.0),
    }  # fmt: skip
    assert [draw.right for draw in outcome.each_draw()] == [0.0, 0.0, 1.0, 1.0]


def test_loss_by_position_is_over_all_texts() -> None:
    assert loss_curve([[-1.0, -2.0, -3.0], [-3.0]]) == [(0, 0, 2.0, 2), (1, 1, 2.0, 1), (2, 2, 3.0, 1)]


@pytest.mark.parametrize(("right", "tried", "k"), [(0, 5, 1), (5, 5, 5), (2, 10, 1), (3, 10, 4), (1, 4, 3)])
def test_pass_at_k_is_the_share_of_samples_that_hold_a_right_one(right: int, tried: int, k: int) -> None:
    expected = 1 - math.comb(tried - right, k) / math.comb(tried, k)
    assert passes(right, tried, k) == pytest.approx(expected)


def test_significance_by_hand() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 1024)
    assert mcnemar(5, 5) == 1.0
    assert normal(1.959964, 1.0) == pytest.approx(0.05, abs=1e-6)
    assert normal(0.0, 0.0) is None
    assert np.isclose(scoring.softmax([0.0, math.log(3)])[1], 0.75)


def test_what_a_task_cannot_measure_is_refused_before_anything_is_asked() -> None:
    check = {"kind": "code", "program": "{{completion}}", "test": "t"}
    with pytest.raises(ValidationError, match="pass@4 needs at least 4 texts"):
        task(output_type="generate_until", metric_list=[{"metric": "pass", "k": 4}], check=check, repeats=2)
    with pytest.raises(ValidationError, match="no regular expression"):
        task(
            output_type="generate_until",
            metric_list=["exact_match"],
            filter_list=[{"name": "a", "filter": [{"function": "regex", "regex_pattern": "(("}]}],
        )
    with pytest.raises(ValidationError, match="no regular expression"):
        task(output_type="generate_until", metric_list=[{"metric": "exact_match", "regexes_to_ignore": ["["]}])


def test_a_match_that_is_not_there_gives_the_fallback() -> None:
    step = {"function": "regex", "regex_pattern": r"\d+", "group_select": 2}
    config = FilterConfig.model_validate({"name": "third", "filter": [step]})
    assert filtered(["1 2 3", "1 2"], config) == ["3", "[invalid]"]


def test_a_perplexity_beyond_numbers_is_infinite() -> None:
    assert scoring.exponential(3.0) == math.exp(3.0)
    assert scoring.exponential(5000.0) == math.inf
