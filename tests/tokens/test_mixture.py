"""Several sources in one order: shares right at every place, and every row of a source once in each of its passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.config.errors import ConfigError, InputError
from llmctl.config.load import build
from llmctl.config.tokens import PackConfig, TokenizeConfig
from llmctl.pipeline.execute import Outcome
from llmctl.store.artifact import Artifact
from llmctl.store.store import Store
from llmctl.tokens.mixture import PARTS, Mixture, Stage, most_off, row_shares, taken
from llmctl.tokens.rows import Rows
from tests.tokens.conftest import generated_documents

RunStage = Callable[..., Outcome]
WEIGHTS = st.lists(st.integers(0, 1000), min_size=1, max_size=9).filter(any)


def shares_of(weights: list[int]) -> tuple[int, ...]:
    return row_shares(weights, [1] * len(weights), [1] * len(weights))


@settings(deadline=None)
@given(weights=WEIGHTS, start=st.integers(0, 10**13))
def test_at_every_place_each_source_has_its_share(weights: list[int], start: int) -> None:
    shares = shares_of(weights)
    assert sum(shares) == PARTS
    turns = np.concatenate((np.arange(400), start + np.arange(400)))
    got = taken(shares, turns)
    assert (got.sum(axis=0) == turns).all()
    assert (got >= 0).all()
    steps = np.diff(got, axis=1)[:, np.arange(799) != 399]
    assert (np.sort(steps, axis=0)[-1] == 1).all()  # each turn is one source's
    assert (steps.sum(axis=0) == 1).all()
    assert all(
        abs(int(count) * PARTS - int(turn) * share) <= most_off(len(shares)) * PARTS
        for counts, share in zip(got, shares, strict=True)
        for count, turn in zip(counts, turns, strict=True)
    )


@settings(deadline=None)
@given(
    weights=WEIGHTS,
    later=WEIGHTS,
    length=st.integers(1, 200),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_a_source_is_seen_whole_before_it_is_seen_again(
    weights: list[int], later: list[int], length: int, seed: int, data: Any
) -> None:
    size = min(len(weights), len(later))
    weights, later = weights[:size], later[:size]
    if not any(weights) or not any(later):
        return
    counts = tuple(data.draw(st.integers(1, 30)) for _ in range(size))
    mixture = Mixture(counts, (Stage(length, shares_of(weights)), Stage(None, shares_of(later))))
    rows = mixture.rows_at(seed, np.arange(500))
    source = mixture.source_of(rows)
    first = np.cumsum(counts) - counts
    for number, count in enumerate(counts):
        seen = rows[source == number] - first[number]
        for start in range(0, seen.size - count + 1, count):
            assert sorted(seen[start : start + count].tolist()) == list(range(count))
        tail = seen[seen.size // count * count :]
        assert np.unique(tail).size == tail.size
    for places, wanted in (((0, length), weights), ((length, 500), later)):
        begin, end = places
        for number, weight in enumerate(wanted):
            got = np.count_nonzero(source[begin:end] == number)
            if end > begin:
                assert abs(got - (min(end, 500) - begin) * weight / sum(wanted)) <= most_off(size) + 1e-6
    pieces = [mixture.rows_at(seed, np.arange(at, at + 50)) for at in range(0, 500, 50)]
    assert (np.concatenate(pieces) == rows).all()
    assert Mixture.of(mixture.facts()) == mixture


def test_rows_that_are_less_full_come_more_often() -> None:
    shares = row_shares([1.0, 1.0], rows=[100, 100], tokens=[100_000, 50_000])
    assert shares == (333_333_333, 666_666_667)


def test_passes_count_what_was_seen() -> None:
    mixture = Mixture((10, 40), (Stage(20, (PARTS // 2, PARTS // 2)), Stage(None, (0, PARTS))))
    assert mixture.passes(20) == [1.0, 0.25]
    assert mixture.passes(60) == [1.0, 1.25]


def test_two_sources_of_the_same_rows_come_in_different_orders() -> None:
    mixture = Mixture((500, 500), (Stage(None, (PARTS // 2, PARTS // 2)),))
    rows = mixture.rows_at(1, np.arange(1000))
    one, two = rows[rows < 500], rows[rows >= 500] - 500
    assert (one == two).mean() < 0.02


@pytest.fixture
def sources(run_stage: RunStage, write_documents: Any, documents: list[str], store: Store) -> dict[str, Artifact]:
    """`web`, and a third of its size `code`, of one tokenizer."""
    config = TokenizeConfig.model_validate({"train": {"vocab_size": 700}})
    web = run_stage("tokenize", config, {"input": write_documents(documents, "web")}).artifact
    given = {
        "input": write_documents(generated_documents(40, seed=8)[:40], "code"),
        "tokenizer": store.find(web.manifest.semantic["tokenizer"]),
    }
    code = run_stage("tokenize", config, given, name="code.tokenize").artifact
    return {"sources.web": web, "sources.code": code}


def packed(run_stage: RunStage, sources: dict[str, Artifact], **fields: Any) -> Artifact:
    config = PackConfig.model_validate({"seq_len": 64, "heldout_fraction": 0.1, **fields})
    return run_stage("pack", config, sources, name="mixed").artifact


def test_training_gets_the_token_shares(run_stage: RunStage, sources: dict[str, Artifact]) -> None:
    artifact = packed(run_stage, sources, weights={"web": 1, "code": 3})
    rows = Rows.open(artifact, "train")
    assert rows.mixture is not None
    totals = artifact.manifest.totals
    assert artifact.manifest.semantic["sources"] == ["code", "web"]
    assert sum(totals[f"train.rows.{name}"] for name in ("web", "code")) == rows.count
    assert sum(totals[f"train.tokens.{name}"] for name in ("web", "code")) == totals["train.tokens"]
    names = pq.read_table(artifact.file("train.documents.parquet")).column("id").to_pylist()
    tokens = {"web": 0, "code": 0}
    for step in range(400):
        for row in rows.rows_of_step(3, step, 8).tolist():
            for document, _, length in rows.slices_of(row).tolist():
                tokens[names[document].partition("/")[0]] += length
        share = tokens["code"] / sum(tokens.values())
        assert abs(share - 0.75) < 1.5 / (8 * (step + 1)) + 0.01, f"at step {step}"
    assert abs(share - 0.75) < 0.001


def test_each_source_keeps_every_token(run_stage: RunStage, sources: dict[str, Artifact]) -> None:
    artifact = packed(run_stage, sources)
    kept = sum(source.manifest.totals["tokens"] for source in sources.values())
    assert artifact.manifest.totals["tokens"] == kept
    rows = Rows.open(artifact, "train")
    one_pass = np.concatenate([rows.rows_of_step(0, step, 1) for step in range(rows.count)])
    assert rows.mixture is not None
    assert [round(value, 1) for value in rows.mixture.passes(rows.count)] == [1.0, 1.0]
    assert np.unique(one_pass).size >= rows.count - 2
    shards = {}
    for source in sources.values():
        for path in source.files(suffix=".parquet"):
            ids = np.fromfile(path.with_name("tokens-00000.bin"), "u2")
            for row in pq.read_table(path).to_pylist():
                shards[row["id"]] = ids[row["offset"] : row["offset"] + row["tokens"]]
    for split in ("train", "heldout"):
        opened = Rows.open(artifact, split)
        names = pq.read_table(artifact.file(f"{split}.documents.parquet")).column("id").to_pylist()
        for row in range(opened.count):
            at, ids = 0, opened.batch(np.array([row])).tokens[0]
            for document, start, length in opened.slices_of(row).tolist():
                assert (ids[at : at + length] == shards[names[document]][start : start + length]).all()
                at += length


def test_a_curriculum_changes_the_mixture_where_it_says(run_stage: RunStage, sources: dict[str, Artifact]) -> None:
    stages = [{"tokens": 6400, "weights": {"web": 1}}, {"weights": {"code": 1, "web": 1}}]
    rows = Rows.open(packed(run_stage, sources, stages=stages), "train")
    assert rows.mixture is not None
    seen = rows.mixture.source_of(rows.rows_of_step(0, 0, 300))
    turn = rows.mixture.stages[0].rows
    assert turn is not None
    assert abs(turn - 100) <= 2  # rows of 64 tokens, nearly full
    assert (seen[:turn] == 1).all()
    assert abs(np.count_nonzero(seen[turn:] == 0) - (300 - turn) / 2) <= 3


def test_what_does_not_fit_is_said(run_stage: RunStage, sources: dict[str, Artifact], write_documents: Any) -> None:
    with pytest.raises(ConfigError, match=r"weights.books: no such source[\s\S]*weights.web: is missing"):
        packed(run_stage, sources, weights={"code": 1, "books": 1})
    with pytest.raises(ConfigError, match="there is one source"):
        packed(run_stage, {"input": sources["sources.web"]}, weights={"web": 1})
    with pytest.raises(InputError, match="not both"):
        packed(run_stage, {"input": sources["sources.web"], **sources})
    other = run_stage(
        "tokenize",
        TokenizeConfig.model_validate({"train": {"vocab_size": 300}}),
        {"input": write_documents(["some text of another kind"] * 30, "other")},
        name="other.tokenize",
    ).artifact
    with pytest.raises(InputError, match="differ in tokenizer"):
        packed(run_stage, {**sources, "sources.other": other})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": {"a": 1}, "stages": [{"weights": {"a": 1}}]}, "give weights, or stages"),
        ({"stages": [{"weights": {"a": 1}}, {"weights": {"a": 1}}]}, "every stage but the last needs tokens"),
        ({"stages": [{"tokens": 5, "weights": {"a": 1}}]}, "the last stage goes on"),
        ({"stages": [{"weights": {"a": 0}}]}, "one source at least"),
        ({"weights": {"a": 0}}, "weights.a"),
    ],
)
def test_contradictory_mixtures_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(PackConfig, [fields])
