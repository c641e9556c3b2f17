from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from llmctl.config.collect import CollectConfig
from llmctl.config.errors import ConfigError, InputError, LlmctlError
from llmctl.config.mix import MixConfig
from llmctl.config.tokens import TokenizerConfig
from llmctl.data.mix import shuffle, stage
from llmctl.data.mix.near import jaccard, shingle_sets
from llmctl.data.split import is_heldout, original
from llmctl.store.artifact import Artifact
from llmctl.tokens.tokenizer import Tokenizer

WORDS = [f"word{number}" for number in range(500)]
Rows = list[dict[str, Any]]


def texts(seed: int, count: int, least: int = 20, most: int = 60) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(least, most))) for _ in range(count)]


@pytest.fixture
def source(tmp_path: Path, run_stage: Callable[..., Any]) -> Callable[..., Artifact]:
    """A documents artifact with these texts; ids are `<name>-<number>` unless given."""

    def make(name: str, given: list[str], ids: list[str] | None = None) -> Artifact:
        path = tmp_path / f"{name}.jsonl"
        names = ids or [f"{name}-{number}" for number in range(len(given))]
        path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in zip(names, given, strict=True)))
        artifact: Artifact = run_stage("collect", CollectConfig(sources=(str(path),))).artifact
        return artifact

    return make


@pytest.fixture
def mixed(run_stage: Callable[..., Any]) -> Callable[..., Artifact]:
    """The mixture of sources by name."""

    def make(sources: dict[str, Artifact], tokenizer: Artifact | None = None, **config: Any) -> Artifact:
        inputs = {f"sources.{name}": given for name, given in sources.items()}
        inputs |= {} if tokenizer is None else {"tokenizer": tokenizer}
        artifact: Artifact = run_stage("mix", MixConfig(**config), inputs).artifact
        return artifact

    return make


def rows_of(artifact: Artifact, split: str) -> Rows:
    return [row for path in artifact.files(suffix=".parquet", split=split) for row in pq.read_table(path).to_pylist()]


def origin(row: dict[str, Any]) -> str:
    return str(row["id"]).partition("-")[0]


def assert_accounted(artifact: Artifact) -> None:
    totals = artifact.manifest.totals
    assert totals["in"] == totals["kept"] + totals["dropped.near_heldout"] + totals["dropped.not_drawn"]
    train, heldout = rows_of(artifact, "train"), rows_of(artifact, "heldout")
    assert totals["documents"] == len(train) + len(heldout) == totals["kept"] + totals["repeated"]
    assert totals["bytes"] == sum(len(row["text"].encode()) for row in train + heldout)
    ids = [row["id"] for row in train + heldout]
    assert len(set(ids)) == len(ids)


def test_shares_by_documents_hold_at_every_prefix(source: Callable, mixed: Callable) -> None:
    given = {
        "web": source("web", texts(1, 300)),
        "books": source("books", texts(2, 80)),
        "qa": source("qa", texts(3, 50)),
    }
    artifact = mixed(given, weights={"web": 6, "books": 3, "qa": 1}, by="documents", documents=200)
    rows = rows_of(artifact, "train")
    assert len(rows) == 200
    counts: Counter[str] = Counter()
    for seen, row in enumerate(rows, start=1):
        counts[origin(row)] += 1
        for name, share in (("web", 0.6), ("books", 0.3), ("qa", 0.1)):
            assert abs(counts[name] - share * seen) <= 1
    assert artifact.manifest.totals["sources.web.documents"] == 120
    assert_accounted(artifact)


def test_shares_by_bytes_hold_at_every_prefix(source: Callable, mixed: Callable) -> None:
    given = {"web": source("web", texts(1, 300)), "books": source("books", texts(2, 60, 100, 300))}
    artifact = mixed(given, weights={"web": 0.7, "books": 0.3}, by="bytes")
    sizes: Counter[str] = Counter()
    largest = max(len(row["text"]) for row in rows_of(artifact, "train"))
    for row in rows_of(artifact, "train"):
        sizes[origin(row)] += len(row["text"])
        assert abs(sizes["web"] - 0.7 * sizes.total()) <= largest
    assert artifact.manifest.totals["repeated"] == 0
    assert 1.0 in (artifact.manifest.totals["sources.web.epochs"], artifact.manifest.totals["sources.books.epochs"])
    assert_accounted(artifact)


def test_a_small_source_repeats_in_epochs(source: Callable, mixed: Callable) -> None:
    given = {"web": source("web", texts(1, 200)), "few": source("few", texts(2, 20))}
    artifact = mixed(given, by="documents", weights={"web": 1, "few": 1}, documents=110, heldout_fraction=0)
    few = [row for row in rows_of(artifact, "train") if origin(row) == "few"]
    assert len(few) == 55
    times = Counter(original(row["id"]) for row in few)
    assert sorted(times.values()) == [2] * 5 + [3] * 15, "nobody comes a third time before all came twice"
    for start in (0, 20):
        assert len({original(row["id"]) for row in few[start : start + 20]}) == 20, "an epoch holds every document once"
    assert {row["id"] for row in few} == {
        name if number == 1 else f"{name}~{number}" for name, most in times.items() for number in range(1, most + 1)
    }
    assert len({row["text"] for row in few}) == 20
    assert artifact.manifest.totals["sources.few.epochs"] == 2.75
    assert artifact.manifest.totals["repeated"] == 35
    assert_accounted(artifact)


def test_without_weights_everything_is_mixed_in_proportion(source: Callable, mixed: Callable) -> None:
    given = {"web": source("web", texts(1, 90)), "few": source("few", texts(2, 10))}
    artifact = mixed(given, heldout_fraction=0)
    assert artifact.manifest.totals["documents"] == 100
    assert artifact.manifest.totals["sources.few.epochs"] == artifact.manifest.totals["sources.web.epochs"] == 1
    warm = mixed(given, heldout_fraction=0, by="documents", temperature=2)
    assert warm.manifest.totals["sources.few.share"] == pytest.approx(0.25)  # 3 : 1
    assert warm.manifest.totals["sources.few.documents"] == 10
    assert 29 <= warm.manifest.totals["sources.web.documents"] <= 31


def test_no_document_is_near_a_held_out_one(source: Callable, mixed: Callable) -> None:
    chance = random.Random(7)
    base = texts(1, 200, 80, 120)
    copies = []
    for text in base:
        words = text.split()
        for place in chance.sample(range(len(words)), chance.randint(0, 4)):
            words[place] = chance.choice(WORDS)
        copies.append(" ".join(words).upper())
    given = {"web": source("web", base), "mirror": source("mirror", copies)}
    artifact = mixed(given, by="documents", heldout_fraction=0.1, weights={"web": 1, "mirror": 1})
    train, heldout = rows_of(artifact, "train"), rows_of(artifact, "heldout")
    held = shingle_sets(base + copies, 5)
    names = [f"web-{n}" for n in range(200)] + [f"mirror-{n}" for n in range(200)]
    outside = [one for one, name in zip(held, names, strict=True) if is_heldout(name, 0.1)]
    inside = [(name, one) for one, name in zip(held, names, strict=True) if not is_heldout(name, 0.1)]
    near = {name for name, one in inside if any(jaccard(one, other) >= 0.8 for other in outside)}
    assert len(near) > 10
    assert artifact.manifest.totals["dropped.near_heldout"] == len(near)
    assert not near & {row["id"] for row in train}
    assert {is_heldout(row["id"], 0.1) for row in heldout} == {True}
    assert {is_heldout(row["id"], 0.1) for row in train} == {False}
    assert_accounted(artifact)


def test_a_repeated_document_is_never_held_out_by_its_new_id(source: Callable, mixed: Callable) -> None:
    given = {"few": source("few", texts(1, 60))}
    artifact = mixed(given, documents=200, heldout_fraction=0.2)
    assert {is_heldout(row["id"], 0.2) for row in rows_of(artifact, "train")} == {False}
    assert any(row["id"].endswith("~4") for row in rows_of(artifact, "train"))


def test_equal_ids_of_different_sources_stay_apart(source: Callable, mixed: Callable) -> None:
    ids = [str(number) for number in range(30)]
    given = {"a": source("a", texts(1, 30), ids), "b": source("b", texts(2, 30), ids)}
    artifact = mixed(given, heldout_fraction=0, by="documents")
    assert {row["id"] for row in rows_of(artifact, "train")} == {*ids, *(f"{name}~2" for name in ids)}
    texts_by_id = {row["id"]: row["text"] for row in rows_of(artifact, "train")}
    again = mixed({"all": artifact}, heldout_fraction=0, seed=9)
    assert {row["id"]: row["text"] for row in rows_of(again, "train")} == texts_by_id
    twice = mixed({"all": artifact}, heldout_fraction=0, documents=120)
    copies = [row for row in rows_of(twice, "train") if row["id"] not in texts_by_id]
    assert {row["id"] for row in copies} == {f"{name}~{number}" for name in ids for number in (3, 4)}
    assert_accounted(twice)


def test_the_result_depends_on_the_seed_alone(
    source: Callable, mixed: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"web": source("web", texts(1, 150)), "books": source("books", texts(2, 60))}
    monkeypatch.setattr(stage, "PART_BYTES", 6000)
    settings = {"weights": {"web": 0.5, "books": 0.5}, "documents": 150, "heldout_fraction": 0.1}
    first = mixed(given, **settings)
    assert len(first.files(split="train")) > 3
    monkeypatch.setattr(stage, "SMALL_BYTES", 0)
    by_workers = mixed(given, **settings, near_threshold=0.81, workers=2)  # another action, the same result
    assert [entry.sha256 for entry in by_workers.manifest.files] == [entry.sha256 for entry in first.manifest.files]
    other = mixed(given, **settings, seed=2)
    assert other.manifest.totals["rows_digest"] != first.manifest.totals["rows_digest"]
    assert {row["id"] for row in rows_of(other, "heldout")} & {row["id"] for row in rows_of(first, "heldout")}


def test_a_run_that_was_cut_short_goes_on(
    source: Callable, mixed: Callable, monkeypatch: pytest.MonkeyPatch, store: Any
) -> None:
    given = {"web": source("web", texts(1, 150)), "books": source("books", texts(2, 60))}
    monkeypatch.setattr(stage, "PART_BYTES", 6000)
    whole = mixed(given, seed=5)
    written: list[Path] = []
    original_write = shuffle.write_part

    def fails_later(task: Any, directory: Path) -> Any:
        if len(written) == 2:
            raise LlmctlError("the lights went out")
        written.append(directory)
        return original_write(task, directory)

    monkeypatch.setattr(stage, "write_part", fails_later)
    with pytest.raises(LlmctlError, match="lights"):
        mixed(given, seed=5, near_threshold=0.81)
    monkeypatch.setattr(stage, "write_part", original_write)
    resumed = mixed(given, seed=5, near_threshold=0.81)
    assert resumed.manifest.totals["rows_digest"] == whole.manifest.totals["rows_digest"]
    assert [entry.sha256 for entry in resumed.manifest.files] == [entry.sha256 for entry in whole.manifest.files]


def test_tokens_are_counted_where_there_is_a_tokenizer(source: Callable, mixed: Callable, run_stage: Callable) -> None:
    web = source("web", texts(1, 60))
    tokenizer = run_stage("tokenizer", TokenizerConfig(vocab_size=280), {"input": web}).artifact
    artifact = mixed({"web": web}, tokenizer=tokenizer, heldout_fraction=0)
    opened = Tokenizer.open(tokenizer.data)
    counted = sum(len(opened.encode(row["text"])) + 2 for row in rows_of(artifact, "train"))
    assert artifact.manifest.totals["train.tokens"] == counted
    estimated = mixed({"web": web}, heldout_fraction=0).manifest.totals
    assert estimated["train.tokens"] == pytest.approx(estimated["train.bytes"] / 4, rel=0.01)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (
            {"weights": {"web": 1, "bok": 1}},
            ConfigError,
            "weights.bok: no such source .sources: books, web.*weights.books",
        ),
        ({"weights": {"web": 1}}, ConfigError, "weights.books: is missing"),
        ({"documents": 100_000}, InputError, "a total of 100,000 documents needs more than 4 epochs of (web|books)"),
        ({"heldout_fraction": 0.999}, InputError, "holds no document to train on"),
    ],
)
def test_bad_input(source: Callable, mixed: Callable, config: dict, error: type[LlmctlError], message: str) -> None:
    given = {"web": source("web", texts(1, 20)), "books": source("books", texts(2, 5))}
    with pytest.raises(error, match=message) as raised:
        mixed(given, **config)
    assert "\n" not in raised.value.one_line


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"weights": {"web": 0}}, "greater than 0"),
        ({"weights": {"web": -1}}, "greater than 0"),
        ({"weights": {"web": float("inf")}}, "finite"),
        ({"tokens": 5, "documents": 5}, "give one total"),
        ({"weights": {"web": 1}, "temperature": 2}, "not both"),
    ],
)
def test_bad_settings(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixConfig(**config)


def test_an_empty_source(source: Callable, mixed: Callable, documents: Callable) -> None:
    with pytest.raises(InputError, match="the source none holds no document to train on: it is empty"):
        mixed({"web": source("web", texts(1, 20)), "none": documents([])})


def test_what_is_known_of_documents_stays_with_them(
    documents: Callable[..., Artifact], mixed: Callable[..., Artifact]
) -> None:
    scored = documents(
        [{"id": f"a-{n}", "text": text, "quality": n / 8} for n, text in enumerate(texts(1, 8))], "quality"
    )
    plain = documents([{"id": f"b-{n}", "text": text} for n, text in enumerate(texts(2, 8))])
    rows = rows_of(mixed({"a": scored, "b": plain}, heldout_fraction=0.0, temperature=1.0), "train")
    assert len(rows) == 16
    for row in rows:
        assert row["quality"] == (int(row["id"][2:]) / 8 if origin(row) == "a" else None)
