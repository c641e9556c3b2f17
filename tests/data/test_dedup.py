import random
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.config.dedup import DedupConfig
from llmctl.data.dedup import run
from llmctl.data.dedup.clusters import Components, Verifier
from llmctl.data.dedup.groups import Groups, sharing
from llmctl.data.dedup.kernel import normalise, shingles
from llmctl.data.dedup.minhash import band_keys, bands_and_rows
from llmctl.data.dedup.sets import ShingleSets
from llmctl.store.artifact import Artifact
from tests.data.conftest import rows_of

WORDS = 400


def clusters_of(artifact: Artifact) -> dict[str, dict[str, object]]:
    return {row["id"]: row for row in pq.read_table(artifact.file("clusters.parquet")).to_pylist()}


def random_words(chance: random.Random, count: int = WORDS) -> list[str]:
    return [f"w{chance.randrange(50_000)}" for _ in range(count)]


def true_jaccard(one: list[str], other: list[str], n: int = 5) -> float:
    """From sets of tuples, without any hashing."""
    a = {tuple(one[i : i + n]) for i in range(len(one) - n + 1)}
    b = {tuple(other[i : i + n]) for i in range(len(other) - n + 1)}
    return len(a & b) / len(a | b)


@pytest.fixture(scope="module")
def planted() -> tuple[list[dict[str, str]], dict[str, float]]:
    """300 documents, each with one shorter copy in which some words differ; the exact Jaccard by copy's id."""
    chance = random.Random(5)
    rows, truth = [], {}
    for number in range(300):
        words = random_words(chance)
        copy = words[:-1]
        for position in chance.sample(range(len(copy)), number % 25):
            copy[position] = f"x{chance.randrange(50_000)}"
        rows += [{"id": f"{number}", "text": " ".join(words)}, {"id": f"{number}-copy", "text": " ".join(copy)}]
        truth[f"{number}-copy"] = true_jaccard(words, copy)
    return rows, truth


def test_planted_near_duplicates(planted: tuple, documents: Callable, stage: Callable) -> None:
    rows, truth = planted
    product, artifact = stage(run, DedupConfig(threshold=0.8), documents(rows))
    gone = clusters_of(artifact)
    near = {name for name, value in truth.items() if value >= 0.8}
    assert 50 < len(near) < 250
    assert set(gone) <= near, "precision: nothing below the threshold goes"
    clear = {name for name in near if truth[name] >= 0.85}
    assert len(clear & set(gone)) >= 0.98 * len(clear)
    assert len(near & set(gone)) >= 0.93 * len(near)
    for name, row in gone.items():
        assert row["jaccard"] == pytest.approx(truth[name], abs=1e-12)
        assert row["representative"] == name.removesuffix("-copy"), "the longer one stays"
    kept = [row["id"] for row in rows_of(artifact)]
    assert kept == [row["id"] for row in rows if row["id"] not in gone], "the input's order is kept"
    assert product.totals["in"] == 600
    assert product.totals["kept"] == len(kept) == 600 - product.totals["dropped.near"]
    assert product.totals["clusters"] == len(gone)


def test_the_result_depends_on_the_seed_alone(planted: tuple, documents: Callable, stage: Callable) -> None:
    rows, _ = planted
    shuffled = random.Random(0).sample(rows, len(rows))
    first, again, other = (
        stage(run, DedupConfig(seed=seed), documents(given))[1] for seed, given in ((1, rows), (1, rows), (1, shuffled))
    )
    assert [f.sha256 for f in first.manifest.files] == [f.sha256 for f in again.manifest.files]
    assert clusters_of(first) == clusters_of(other)
    assert first.manifest.totals["rows_digest"] == other.manifest.totals["rows_digest"]


def test_exact_duplicates(documents: Callable, stage: Callable) -> None:
    given = documents([
        {"id": "b", "text": "One two\nthree"}, {"id": "a", "text": "one  TWO three"},
        {"id": "c", "text": "ONE TWO THREE"},
        {"id": "d", "text": "one two three."}, {"id": "e", "text": "..."}, {"id": "f", "text": "!!!"},
    ])  # fmt: skip
    product, artifact = stage(run, DedupConfig(near=False), given)
    assert [row["id"] for row in rows_of(artifact)] == ["a", "d", "e", "f"]
    assert {name: row["representative"] for name, row in clusters_of(artifact).items()} == {"b": "a", "c": "a"}
    assert {row["reason"] for row in clusters_of(artifact).values()} == {"exact"}
    assert (product.totals["dropped.exact"], product.totals["dropped.near"]) == (2, 0)


def test_punctuation_alone_is_a_near_duplicate_and_copies_follow_their_survivor(
    documents: Callable, stage: Callable
) -> None:
    text = " ".join(random_words(random.Random(1), 30))
    given = documents([{"id": "a", "text": text}, {"id": "b", "text": text.upper()}, {"id": "c", "text": text + "..."}])
    product, artifact = stage(run, DedupConfig(), given)
    rows = clusters_of(artifact)
    assert [row["id"] for row in rows_of(artifact)] == ["c"]
    assert {name: (row["representative"], row["reason"]) for name, row in rows.items()} == {
        "a": ("c", "near"), "b": ("c", "exact"),
    }  # fmt: skip
    assert product.totals["clusters"] == 1


def test_without_exact_the_near_pass_finds_the_copies(documents: Callable, stage: Callable) -> None:
    text = " ".join(random_words(random.Random(1), 30))
    given = documents([{"id": str(n), "text": text} for n in range(100)])
    product, artifact = stage(run, DedupConfig(exact=False), given)
    assert [row["id"] for row in rows_of(artifact)] == ["0"]
    assert product.totals["dropped.near"] == 99
    both_off, _ = stage(run, DedupConfig(exact=False, near=False), given)
    assert both_off.totals["kept"] == 100


def test_a_chain_does_not_take_its_far_end_away(documents: Callable, stage: Callable) -> None:
    """The longest is near the second, the second near the third, but the longest is not near the third."""
    words = random_words(random.Random(2))
    chain = [words, words[30:-1], words[60:-1]]
    steps = [true_jaccard(a, b) for a, b in ((chain[0], chain[1]), (chain[1], chain[2]), (chain[0], chain[2]))]
    assert min(steps[:2]) > 0.9
    assert steps[2] < 0.88
    given = documents([{"id": str(n), "text": " ".join(part)} for n, part in enumerate(chain)])
    _, artifact = stage(run, DedupConfig(threshold=0.88, permutations=256), given)
    assert [row["id"] for row in rows_of(artifact)] == ["0", "2"]


def test_bands_catch_what_lies_above_the_threshold() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9):
        bands, rows = bands_and_rows(threshold, 128)
        assert bands * rows <= 128
        assert 1 - (1 - (threshold + 0.05) ** rows) ** bands > 0.95


def test_buckets() -> None:
    signatures = np.array([[1, 2, 3, 4], [1, 2, 9, 9], [5, 6, 3, 4], [0, 0, 0, 0]], dtype=np.uint32)
    groups = [sharing(keys, np.arange(4)) for keys in band_keys(signatures, 2, 2)]
    assert [[group.tolist() for group in band] for band in groups] == [[[0, 1]], [[0, 2]]]


def sets_of(*texts: str, n: int = 5) -> ShingleSets:
    return ShingleSets(shingles(normalise(pa.array(texts)), n).sets())


@given(
    st.lists(st.sampled_from("abcd"), max_size=30), st.lists(st.sampled_from("abcd"), max_size=30), st.integers(1, 6)
)
def test_jaccard_of_shingles_is_that_of_tuples(one: list[str], other: list[str], n: int) -> None:
    sets = sets_of(" ".join(one), " ".join(other), n=n)
    similar, same = sets.jaccard(np.array([[0, 1], [0, 0]]), threshold=0.0)
    if min(len(one), len(other)) >= n:
        assert similar == true_jaccard(one, other, n)
    assert same == (1.0 if one else 0.0)


def test_sizes_alone_settle_hopeless_pairs() -> None:
    sets = sets_of("a b c d e f g h i j", "a b c d e f")
    assert sets.jaccard(np.array([[0, 1]]), 0.8).tolist() == [2 / 6], "the bound"
    assert sets.jaccard(np.array([[0, 1]]), 0.3).tolist() == [2 / 6]
    assert sets_of("a b c d e f g h i j", "u v w x y z").jaccard(np.array([[0, 1]]), 0.3).tolist() == [0.0]


def test_shingles_fold_case_and_drop_punctuation() -> None:
    def hashes(text: str) -> list[int]:
        return shingles(normalise(pa.array([text])), 3).hashes.tolist()

    assert hashes("Ärger, the END of it") == hashes("ÄRGER the  end\nof it!")
    assert len(hashes("two words")) == 1
    assert len(hashes("... !")) == 0
    assert hashes("a b c") != hashes("c b a")


def test_large_buckets_are_compared_with_leaders_only() -> None:
    chance = np.random.default_rng(1)
    kinds = [np.unique(chance.integers(0, 2**64, 50, dtype=np.uint64)) for _ in range(3)]
    sets = [kinds[n % 3] for n in range(300)]
    verifier = Verifier(ShingleSets.of(sets), 0.8)
    verifier.add(Groups.of([range(300)]))
    assert [len(group) for group in verifier.components.groups()] == [100, 100, 100]
    assert verifier.compared < 3 * 300


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19))))
def test_components(pairs: list[tuple[int, int]]) -> None:
    components, sets = Components(20), [{n} for n in range(20)]
    for one, other in pairs:
        components.join(one, other)
        union = sets[one] | sets[other]
        for member in union:
            sets[member] = union
    assert components.groups() == [sorted(s) for n, s in enumerate(sets) if len(s) > 1 and n == min(s)]


def test_what_is_known_of_documents_stays_with_them(documents: Callable, stage: Callable) -> None:
    words = random_words(random.Random(1))
    other = random_words(random.Random(2))
    rows = [
        {"id": "poor", "text": " ".join(words), "quality": 0.1, "pii": "email:2"},
        {"id": "good", "text": " ".join(words[:-1]), "quality": 0.9, "pii": ""},
        {"id": "unknown", "text": " ".join(other), "quality": None, "pii": None},
    ]
    _, artifact = stage(run, DedupConfig(keep="quality"), documents(rows, "quality", "pii"))
    kept = [{name: row[name] for name in ("id", "quality", "pii")} for row in rows_of(artifact)]
    assert kept == [
        {"id": "good", "quality": 0.9, "pii": ""},
        {"id": "unknown", "quality": None, "pii": None},
    ]
    assert "perplexity" not in rows_of(artifact)[0], "what the input lacks is not made up"
