"""Log-likelihoods against plain log-softmax sums, in any batch."""

import pytest
import torch

from llmctl.config.errors import UsageError
from llmctl.inference.engine import Engine
from llmctl.inference.request import Request
from llmctl.inference.score import ScoreJob, rows_of
from llmctl.model.attention import packed
from tests.inference.conftest import VOCAB

PAIRS = [
    ([1], [5]),
    ([1, 7, 8], [9, 10, 11]),
    (list(range(20, 60)), list(range(100, 130))),
    ([1, 2], list(range(200, 240))),
    ([1] * 90, [4]),
]


def plain(engine: Engine, context: list[int], continuation: list[int]) -> float:
    return sum(each(engine, context, continuation))


def each(engine: Engine, context: list[int], continuation: list[int]) -> list[float]:
    ids = torch.tensor([context + continuation])
    with torch.inference_mode():
        table = engine.model.logits(
            engine.model(ids, torch.arange(ids.shape[1])[None], packed(torch.zeros_like(ids)))
        ).log_softmax(-1)
    start = len(context)
    return [table[0, start + step - 1, token].item() for step, token in enumerate(continuation)]


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_scores_are_the_sums(engine: Engine, batch_tokens: int) -> None:
    for (context, continuation), score in zip(PAIRS, engine.score(PAIRS, batch_tokens=batch_tokens), strict=True):
        assert score.logprob == pytest.approx(plain(engine, context, continuation), rel=1e-4)
        assert score.tokens == len(continuation)


def test_is_greedy_is_what_greedy_generation_says(engine: Engine) -> None:
    answer = engine.generate([Request([1, 40], max_tokens=6, temperature=0.0, stop_ids=(), logprobs=0)])[0]
    ids = list(answer.token_ids)
    changed = [*ids[:3], (ids[3] + 1) % VOCAB, *ids[4:]]
    right, wrong = engine.score([([1, 40], ids), ([1, 40], changed)])
    assert right.is_greedy
    assert not wrong.is_greedy
    assert answer.logprobs is not None
    assert right.logprob == pytest.approx(sum(entry.logprob for entry in answer.logprobs), rel=1e-4)


def test_scores_do_not_depend_on_the_chunks_of_logits(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = engine.score(PAIRS)
    monkeypatch.setattr("llmctl.inference.score.LOGITS_AT_ONCE", 7 * VOCAB)  # 76 targets in 11 chunks
    for chunked, score in zip(engine.score(PAIRS), whole, strict=True):
        assert chunked.logprob == pytest.approx(score.logprob, rel=1e-5)
        assert (chunked.is_greedy, chunked.tokens) == (score.is_greedy, score.tokens)


def test_scoring_and_generating_at_once(engine: Engine) -> None:
    request = Request([1], max_tokens=60, seed=0, stop_ids=())
    alone = engine.generate([request])[0]
    handle = engine.submit(request)
    scores = engine.score(PAIRS * 4, batch_tokens=64)
    assert handle.result() == alone
    assert [score.tokens for score in scores] == [len(continuation) for _, continuation in PAIRS * 4]


def test_nothing_to_score(engine: Engine) -> None:
    assert engine.score([]) == []


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        (([], [1]), "pair 1 has an empty context"),
        (([1], []), "pair 1 has an empty continuation"),
        (([1] * 90, [2] * 8), "pair 1 has 98 tokens, the model's context is 96"),
        (([1], [VOCAB]), "pair 1 holds a token id outside"),
    ],
)
def test_wrong_pairs_are_refused(engine: Engine, pair: tuple[list[int], list[int]], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        engine.score([([1], [2]), pair])


# Three questions behind one long prompt, two answers each; the answers of the last begin alike.
SHARING = [
    ([*range(20, 50), question], answer) for question in (60, 61, 62) for answer in ([100, 101, question], [100, 102])
]


@pytest.mark.parametrize("batch_tokens", [1, 24, 10_000])
def test_what_pairs_share_is_run_once_and_changes_no_score(engine: Engine, batch_tokens: int) -> None:
    pairs = [*SHARING, *PAIRS, *SHARING[:2]]
    for (context, continuation), score in zip(pairs, engine.score(pairs, batch_tokens=batch_tokens), strict=True):
        assert score.logprob == pytest.approx(plain(engine, context, continuation), rel=1e-4)
        assert sum(score.token_logprobs) == pytest.approx(score.logprob, abs=1e-9)


@torch.inference_mode()
def test_a_step_runs_the_common_prompt_once(engine: Engine) -> None:
    job = ScoreJob(SHARING, 10_000, 96, VOCAB)
    job._free = list(range(100))
    _, spans = job._take()
    lengths = sorted(len(context) + len(answer) - 1 for context, answer in SHARING)
    assert sorted(span.length for span in spans) == lengths
    whole, *rest = spans
    assert whole.start == 0
    # 30 tokens are common to all, 32 to the two answers of a question.
    # The second answer's first token is that of the first one, whose likelihood is known: the token before what differs
    # is the first that is run again.
    assert [span.start for span in rest] == [31, 30, 31, 30, 31]
    assert sum(span.count for span in spans) < sum(lengths) / 3


def test_answers_that_begin_alike_share_what_they_are_worth(engine: Engine) -> None:
    begin = list(range(100, 108))
    answers = [
        [*begin, 120, 121],
        [*begin, 122],
        [*begin, 122, 123, 124],
        [*begin[:4], 125, 126],
        [*begin[:4], 125, 127],
    ]
    pairs = [(list(range(20, 30)), answer) for answer in answers]
    pairs += [(list(range(20, 28)), [28, 29, *begin, 122, 5]), (list(range(20, 34)), [7])]  # other parts are asked for
    for batch_tokens in (1, 24, 10_000):
        for (context, continuation), score in zip(pairs, engine.score(pairs, batch_tokens=batch_tokens), strict=True):
            assert score.token_logprobs == pytest.approx(each(engine, context, continuation), rel=1e-4)
    job = ScoreJob(pairs, 10_000, 96, VOCAB)
    job._free = list(range(200))
    with torch.inference_mode():
        _, spans = job._take()
    assert [span.count for span in spans] == [14, 9, 2, 12, 2, 2]  # of 105; the fourth is asked for more than the third


def test_pairs_that_read_the_same_are_one_row() -> None:
    letters = [([1, 2, 3], [answer]) for answer in (7, 8, 9)]
    rows = rows_of([*letters, ([1, 2], [3, 7]), ([1], [5, 5])])
    assert [(list(row.tokens), sorted(row.pairs), row.needed) for row in rows] == [
        ([1, 2, 3], [0, 1, 2, 3], 1),
        ([1, 5], [4], 0),
    ]
