"""ROUGE-L against its definition and against another implementation; what counts as known."""

import itertools
import random

import pytest

from llmctl.data.likeness import Known, rouge_l, words_of

LEXICON = "write a poem about the sea and sort these numbers".split()


def longest_common(one, other):
    """By trying every subsequence of the first, longest first."""
    for length in range(len(one), 0, -1):
        for chosen in itertools.combinations(one, length):
            left = iter(other)
            if all(word in left for word in chosen):
                return length
    return 0


@pytest.mark.parametrize("seed", range(8))
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(seed):
    draw = random.Random(seed)
    one, other = ([draw.choice(LEXICON) for _ in range(draw.randint(1, 8))] for _ in range(2))
    common = longest_common(one, other)
    precision, recall = common / len(other), common / len(one)
    expected = 2 * precision * recall / (precision + recall) if common else 0.0
    assert rouge_l(one, other) == pytest.approx(expected)


@pytest.mark.slow  # imports nltk
def test_rouge_l_is_that_of_rouge_score():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    draw = random.Random(0)
    for _ in range(50):
        one, other = ([draw.choice(LEXICON) for _ in range(draw.randint(1, 12))] for _ in range(2))
        found = scorer.score(" ".join(one), " ".join(other))["rougeL"].fmeasure
        assert rouge_l(one, other) == pytest.approx(found)


def test_the_bound_that_saves_work_changes_no_verdict():
    draw = random.Random(1)
    texts = [" ".join(draw.choice(LEXICON) for _ in range(draw.randint(1, 9))) for _ in range(60)]
    for most_similar in (0.4, 0.7, 1.0):
        for at, text in enumerate(texts):
            plain = any(rouge_l(words_of(text), words_of(other)) >= most_similar for other in texts[:at])
            assert Known(most_similar, texts[:at]).holds(text) == plain


def test_case_and_marks_make_no_difference_and_nothing_is_known_without_a_bound():
    known = Known(1.0, ["Write a POEM about the sea!"])
    assert known.holds("write a poem, about the sea")
    assert not known.holds("write a poem about the shore")
    known.add("write a poem about the shore")
    assert known.holds("write a poem about the shore")
    assert Known(1.0, ["?!"]).holds("...")
    assert not Known(0.5, ["..."]).holds("a word")
    assert not Known(None, ["a"]).holds("a")
