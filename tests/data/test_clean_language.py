"""Language identification: right on texts of many languages, code left alone, and counted."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from llmctl.config.clean import CleanConfig
from llmctl.config.clean_steps import LanguageConfig
from llmctl.data.clean import run
from llmctl.data.clean.language import Language
from llmctl.data.tables import DOCUMENTS, documents_schema, extra_columns
from tests.data.conftest import rows_of

TEXTS = json.loads((Path(__file__).parent / "languages.json").read_text(encoding="utf-8"))  # written for this test


def batch_of(texts: list[str], lang: str = "") -> pa.RecordBatch:
    rows = [
        {**dict.fromkeys(DOCUMENTS.names, ""), "id": str(n), "text": text, "lang": lang} for n, text in enumerate(texts)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=DOCUMENTS)


def test_documents_over_200_characters_are_named_rightly() -> None:
    """Above 98 %: of whole texts, and of every cut of 200 characters. bench/language.py measures more languages."""
    assert all(len(text) > 190 for text in TEXTS.values())
    cuts = [
        (code, text[start : start + 200])
        for code, text in TEXTS.items()
        for start in range(0, max(1, len(text) - 199), 25)
    ]
    named = Language(LanguageConfig(identify=True))(batch_of([text for _, text in cuts]))
    right = [code == lang for (code, _), lang in zip(cuts, named.column("lang").to_pylist(), strict=True)]
    assert sum(right) / len(right) > 0.98
    whole = Language(LanguageConfig(identify=True))(batch_of(list(TEXTS.values())))
    assert whole.column("lang").to_pylist() == list(TEXTS)
    assert min(whole.column("lang_score").to_pylist()) > 0.65
    assert whole.schema.names == [*documents_schema(["lang_score"]).names, "reason", "value"]


def test_unwanted_and_uncertain_languages_are_dropped() -> None:
    kernel = Language(LanguageConfig.model_validate({"keep": "en, de"}))
    judged = kernel(batch_of([TEXTS["en"], TEXTS["de"], TEXTS["fr"], "ok 12", ""]))
    assert judged.column("reason").to_pylist() == [None, None, "language", "language", "language"]
    assert judged.column("value").to_pylist()[2] == judged.column("lang_score").to_pylist()[2] > 0.9
    assert judged.column("value").to_pylist()[4] < 0.65


def test_code_is_left_alone() -> None:
    judged = Language(LanguageConfig(keep=("de",)))(batch_of(["def f(): return 1"], lang="python"))
    assert judged.column("lang").to_pylist() == ["python"]
    assert judged.column("lang_score").to_pylist() == [None]
    assert judged.column("reason").to_pylist() == [None]
    named_by_its_source = Language(LanguageConfig(keep=("de",)))(batch_of([TEXTS["de"]], lang="de-AT"))
    assert named_by_its_source.column("lang").to_pylist() == ["de"]


def test_the_score_is_a_column_that_later_stages_may_ignore(documents: Callable, stage: Callable) -> None:
    from llmctl.config.dedup import DedupConfig
    from llmctl.data.dedup import run as dedup

    off = {"quality": {"enabled": False}, "repetition": {"enabled": False}}
    given = documents([{"id": code, "text": text} for code, text in TEXTS.items()])
    product, artifact = stage(run, CleanConfig(language={"keep": "en,de,ja"}, keep_rejected=True, **off), given)
    assert {row["id"]: row["lang"] for row in rows_of(artifact)} == {"en": "en", "de": "de", "ja": "ja"}
    assert all(0.65 <= row["lang_score"] <= 1 for row in rows_of(artifact))
    assert product.totals["dropped.language"] == len(TEXTS) - 3
    assert {row["lang"] for row in rows_of(artifact, "rejected")} == set(TEXTS) - {"en", "de", "ja"}
    assert extra_columns(artifact) == ["lang_score"]
    again, second = stage(run, CleanConfig(**off), artifact)  # a second clean keeps it
    assert [row["lang_score"] for row in rows_of(second)] == [row["lang_score"] for row in rows_of(artifact)]
    assert again.totals["rows_digest"] == product.totals["rows_digest"]
    _, deduped = stage(dedup, DedupConfig(), artifact)
    assert {row["id"] for row in rows_of(deduped)} == {"en", "de", "ja"}


@pytest.mark.parametrize("text", ["\0" * 1000, "\u202e" * 1000, "a" * 1_000_000, "\n\n", "👩\u200d👩\u200d👧" * 50])
def test_odd_texts_have_some_language(text: str) -> None:
    assert 0 <= Language(LanguageConfig(identify=True))(batch_of([text])).column("lang_score").to_pylist()[0] <= 1
