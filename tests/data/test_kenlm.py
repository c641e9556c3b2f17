"""The stage `kenlm`: its command, what it says where KenLM's programs are missing, and a model where they are not."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmctl.config.clean import CleanConfig
from llmctl.config.errors import InputError
from llmctl.config.kenlm import KenlmConfig
from llmctl.data import clean, kenlm
from llmctl.data.clean.perplexity import sentences
from llmctl.store.artifact import Artifact
from tests.data.conftest import job_of, rows_of

OFF = {"quality": {"enabled": False}, "repetition": {"enabled": False}}
needs_kenlm = pytest.mark.skipif(
    not (shutil.which("lmplz") and shutil.which("build_binary")),
    reason="KenLM's lmplz and build_binary are not on PATH; they are built from its sources",
)


def test_the_text_is_split_as_clean_splits_it(documents: Callable, tmp_path: Path) -> None:
    rows = [
        {"id": "a", "text": "It's <s> ONE.\n\n two\tthree "},
        {"id": "b", "text": " \n"},
        {"id": "c", "text": "Ünï—x"},
    ]
    job = job_of(KenlmConfig(), tmp_path / "job", documents(rows))
    assert dict(kenlm._write_text(job)) == {"documents": 2, "lines": 3, "words": 13}
    written = (job.work / "text").read_text()
    assert written == "it ' s < s > one .\ntwo three\nünï — x\n"
    spelled = job_of(KenlmConfig(lowercase=False), tmp_path / "spelled", documents(rows))
    kenlm._write_text(spelled)
    assert (spelled.work / "text").read_text().startswith("It ' s < s > ONE .\n")


@given(st.text())
def test_no_word_holds_what_would_end_it_or_is_special(text: str) -> None:
    for words in sentences(text, lowercase=True):
        assert words
        assert not {"", "<s>", "</s>", "<unk>"} & set(words)
        assert " ".join(words).split() == words


def test_the_command(tmp_path: Path) -> None:
    config = KenlmConfig(order=3, prune=(0, 0, 1), memory_fraction=0.25)
    assert kenlm.lmplz_command("/bin/lmplz", config, Path("/work"), Path("/out/model.arpa")) == [
        "/bin/lmplz", "--order", "3", "--memory", "25%", "--temp_prefix", "/work/", "--text", "/work/text",
        "--arpa", "/out/model.arpa", "--prune", "0", "0", "1", "--discount_fallback",
    ]  # fmt: skip
    strict = KenlmConfig(discount_fallback=False)
    assert kenlm.lmplz_command("lmplz", strict, tmp_path, tmp_path / "a")[-2:] == ["--arpa", str(tmp_path / "a")]
    for prune in ((1, 0), (0, -1), (0,) * 6):
        with pytest.raises(ValidationError, match="that never fall"):
            KenlmConfig(prune=prune)


def test_what_is_missing_is_said_before_any_work(
    documents: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    job = job_of(KenlmConfig(), tmp_path / "job", documents([{"id": "a", "text": "one"}]))
    with pytest.raises(InputError, match="lmplz is not on PATH") as caught:
        kenlm.run(job)
    assert "cmake and Boost" in caught.value.hint
    assert not job.work.exists()
    (tmp_path / "lmplz").write_text("")
    (tmp_path / "lmplz").chmod(0o755)
    with pytest.raises(InputError, match="build_binary is not on PATH"):
        kenlm.run(job)
    assert not job.work.exists()


def test_the_head_of_an_arpa_file(tmp_path: Path) -> None:
    path = tmp_path / "model.arpa"
    path.write_text("\\data\\\nngram 1=5\nngram 2=12\n\n\\1-grams:\n-1.0\tngram 3=4\n")
    assert kenlm.ngram_counts(path) == {1: 5, 2: 12}


def prose(count: int, seed: int) -> list[dict[str, str]]:
    """Sentences in which every word decides what the next may be."""
    draw = np.random.default_rng(seed)
    words = [f"w{number}" for number in range(50)]
    rows = []
    for number in range(count):
        place, text = 0, []
        for step in draw.integers(1, 4, 40).tolist():
            place = (place * 3 + step) % len(words)
            text.append(words[place].upper() if step == 1 else words[place])
        rows.append({"id": f"{seed}-{number}", "text": " ".join(text)})
    return rows


@needs_kenlm
@pytest.mark.parametrize("form", ["binary", "arpa"])
def test_a_model_tells_its_own_kind_of_text(documents: Callable, stage: Callable, form: str) -> None:
    pytest.importorskip("kenlm")
    config = KenlmConfig(order=3, format=form, memory_fraction=0.05)
    product, model = stage(kenlm.run, config, documents(prose(200, 1)))
    other = KenlmConfig(order=3, format=form, memory_fraction=0.02)
    again = stage(kenlm.run, other, documents(prose(200, 1)))[1]
    assert [entry.sha256 for entry in model.manifest.files] == [entry.sha256 for entry in again.manifest.files]
    assert [path.name for path in model.files()] == [kenlm.MODEL_FILES[form]]
    assert (product.totals["documents"], product.totals["lines"], product.totals["words"]) == (200, 200, 8000)
    assert product.totals["ngrams.1"] <= 53  # 50 words, <unk>, <s>, </s>
    likely, unlikely = perplexities(documents, stage, model)
    assert max(likely) < 10
    assert min(unlikely) > 50  # worse than a draw from 50 words


def perplexities(documents: Callable, stage: Callable, model: Artifact) -> tuple[list[float], list[float]]:
    """Those of new texts of the kind that the model saw, and of the same words in any order."""
    draw = np.random.default_rng(7)
    fresh = prose(20, 2)
    mixed = [{"id": f"m{row['id']}", "text": " ".join(draw.permutation(row["text"].split()))} for row in fresh]
    _, judged = stage(
        clean.run, CleanConfig(perplexity={"lowercase": False}, **OFF), documents(fresh + mixed), kenlm=model
    )
    found = {row["id"]: row["perplexity"] for row in rows_of(judged)}
    return [found[row["id"]] for row in fresh], [found[row["id"]] for row in mixed]


@needs_kenlm
def test_no_word(documents: Callable, stage: Callable) -> None:
    with pytest.raises(InputError, match="no word"):
        stage(kenlm.run, KenlmConfig(), documents([{"id": "a", "text": " "}]))


@needs_kenlm
def test_a_corpus_too_small_to_estimate_discounts(documents: Callable, stage: Callable) -> None:
    tiny = documents([{"id": "a", "text": "one two three one two"}])
    product, _ = stage(kenlm.run, KenlmConfig(order=2, memory_fraction=0.05), tiny)
    assert product.totals["ngrams.1"] == 6
    with pytest.raises(InputError, match=r"lmplz ended with .*: BadDiscountException") as caught:
        stage(kenlm.run, KenlmConfig(order=2, memory_fraction=0.05, discount_fallback=False), tiny)
    assert "discount_fallback=true" in caught.value.hint
