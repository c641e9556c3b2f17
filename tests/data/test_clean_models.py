"""The quality classifier, trained and used, and perplexity by KenLM."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmctl.config.classifier import ClassifierConfig
from llmctl.config.clean import CleanConfig
from llmctl.config.clean_steps import PerplexityConfig
from llmctl.config.errors import InputError
from llmctl.data.classifier import area_under_roc
from llmctl.data.classifier import run as train
from llmctl.data.clean import run
from llmctl.data.clean.perplexity import Perplexity
from llmctl.store.artifact import Artifact, FileInput
from tests.data.conftest import rows_of

OFF = {"quality": {"enabled": False}, "repetition": {"enabled": False}}
GOOD = "theorem proof lemma therefore assume converges bounded".split()
POOR = "click buy cheap deal free now winner".split()


def texts(words: list[str], count: int, seed: int) -> list[dict[str, str]]:
    draw = np.random.default_rng(seed)
    kind = words[0]
    return [
        {"id": f"{kind}{seed}-{n}", "text": " ".join(draw.choice([*words, "the", "of", "a"], 30))} for n in range(count)
    ]


@pytest.fixture
def classifier(documents: Callable, stage: Callable) -> Artifact:
    good, poor = documents(texts(GOOD, 200, 1)), documents(texts(POOR, 200, 2))
    return stage(train, ClassifierConfig(buckets=1000, dimensions=8), good, negative=poor)[1]


def test_training_is_measured_and_repeats_itself(documents: Callable, stage: Callable) -> None:
    good, poor = documents(texts(GOOD, 200, 1)), documents(texts(POOR, 200, 2))
    config = ClassifierConfig(buckets=1000, dimensions=8)
    product, first = stage(train, config, good, negative=poor)
    _, second = stage(train, config, good, negative=poor)
    assert [entry.sha256 for entry in first.manifest.files] == [entry.sha256 for entry in second.manifest.files]
    totals = product.totals
    assert totals["positive"] + totals["negative"] + totals["heldout"] == 400
    assert 20 < totals["heldout"] < 70
    assert totals["heldout_accuracy"] == totals["heldout_auc"] == 1.0
    with pytest.raises(InputError, match="no negative document"):
        stage(train, config, good, negative=documents([{"id": "a", "text": " "}]))


def test_scores_and_the_least_score(documents: Callable, stage: Callable, classifier: Artifact) -> None:
    given = documents([*texts(GOOD, 20, 3), *texts(POOR, 20, 4)])
    _, scored = stage(run, CleanConfig(**OFF), given, classifier=classifier)
    quality = {row["id"]: row["quality"] for row in rows_of(scored)}
    assert min(quality[row["id"]] for row in texts(GOOD, 20, 3)) > 0.9
    assert max(quality[row["id"]] for row in texts(POOR, 20, 4)) < 0.1
    product, kept = stage(run, CleanConfig(classifier={"min_score": 0.5}, **OFF), given, classifier=classifier)
    assert {row["id"] for row in rows_of(kept)} == {row["id"] for row in texts(GOOD, 20, 3)}
    assert product.totals["dropped.quality_score"] == 20
    plain = FileInput.of(classifier.file("model.bin"), "classifier")
    assert rows_of(stage(run, CleanConfig(**OFF), given, classifier=plain)[1]) == rows_of(scored)


@pytest.mark.parametrize(("share", "kept"), [(0.25, 10), (0.01, 1), (1.0, 40)])
def test_the_best_quantile(documents: Callable, stage: Callable, classifier: Artifact, share: float, kept: int) -> None:
    given = documents([*texts(POOR, 20, 4), *texts(GOOD, 20, 3), {"id": "empty", "text": ""}])
    config = CleanConfig(classifier={"keep_quantile": share}, keep_rejected=True, **OFF)
    product, artifact = stage(run, config, given, classifier=classifier)
    scores = sorted((row["quality"] for row in rows_of(artifact)), reverse=True)
    assert len(scores) == kept
    rejected = [row for row in rows_of(artifact, "rejected") if row["reason"] == "quality_quantile"]
    assert len(rejected) == 40 - kept == product.totals.get("dropped.quality_quantile", 0)
    assert all(row["value"] == row["quality"] < scores[-1] for row in rejected)
    assert product.totals["in"] == 41 == kept + len(rejected) + product.totals["dropped.empty"]


def test_limits_need_their_model(documents: Callable, stage: Callable, tmp_path: Path) -> None:
    given = documents(texts(GOOD, 1, 1))
    with pytest.raises(InputError, match="limit for classifier"):
        stage(run, CleanConfig(classifier={"keep_quantile": 0.5}, **OFF), given)
    with pytest.raises(InputError, match="limit for kenlm"):
        stage(run, CleanConfig(perplexity={"max_perplexity": 5}, **OFF), given)
    (tmp_path / "no.bin").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"no\.bin"):
        stage(run, CleanConfig(**OFF), given, classifier=FileInput.of(tmp_path / "no.bin", "classifier"))


def test_area_under_roc() -> None:
    assert area_under_roc(np.array([0.9, 0.8, 0.1]), np.array([True, True, False])) == 1.0
    assert area_under_roc(np.array([0.5, 0.5]), np.array([True, False])) == 0.5
    assert area_under_roc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])) == 0.75


ARPA = (
    "\\data\\\nngram 1=5\nngram 2=1\n\n"
    "\\1-grams:\n-1.0\t<unk>\n-99\t<s>\t0\n-1.0\t</s>\n-0.5\tthe\t0\n-1.5\tcat\n\n"
    "\\2-grams:\n-0.2\tthe cat\n\n\\end\\\n"
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    pytest.importorskip("kenlm")
    path = tmp_path / "unigrams.arpa"
    path.write_text(ARPA)
    return path


def test_perplexity_by_hand(model: Path) -> None:
    kernel = Perplexity(model, PerplexityConfig())
    assert kernel.measure("The cat") == pytest.approx(10 ** ((0.5 + 0.2 + 1.0) / 3))
    assert kernel.measure("the\n\ncat\n") == pytest.approx(10 ** ((0.5 + 1.0 + 1.5 + 1.0) / 4))
    assert kernel.measure(" \n ") is None
    assert Perplexity(model, PerplexityConfig(lowercase=False)).measure("The") == pytest.approx(10 ** ((1.0 + 1.0) / 2))


def test_perplexity_in_the_stage(documents: Callable, stage: Callable, model: Path, tmp_path: Path) -> None:
    given = documents([{"id": "low", "text": "the the the"}, {"id": "high", "text": "cat cat cat"}])
    role = FileInput.of(model, "kenlm")
    product, artifact = stage(run, CleanConfig(perplexity={"max_perplexity": 10}, **OFF), given, kenlm=role)
    assert [(row["id"], round(row["perplexity"], 3)) for row in rows_of(artifact)] == [
        ("low", round(10 ** (2.5 / 4), 3))
    ]
    assert product.totals["dropped.high_perplexity"] == 1
    low, _ = stage(run, CleanConfig(perplexity={"min_perplexity": 10}, **OFF), given, kenlm=role)
    assert low.totals["dropped.low_perplexity"] == 1
    (tmp_path / "bad.arpa").write_text("nothing")
    with pytest.raises(InputError, match=r"bad\.arpa"):
        stage(run, CleanConfig(**OFF), given, kenlm=FileInput.of(tmp_path / "bad.arpa", "kenlm"))
    assert math.isfinite(Perplexity(model, PerplexityConfig()).measure("\0 \u202e x" * 1000) or 0)
