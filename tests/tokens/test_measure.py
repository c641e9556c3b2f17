"""Figures of a tokenizer on documents, against sums made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llmctl.config.tokens import TokenizerConfig
from llmctl.pipeline.execute import Outcome
from llmctl.pipeline.job import Silent
from llmctl.tokens.measure import Measured, measure
from llmctl.tokens.tokenizer import Tokenizer


def batch(rows: list[tuple[str, str, str]]) -> pa.RecordBatch:
    names = ("text", "language", "source")
    return pa.RecordBatch.from_pydict({name: [row[at] for row in rows] for at, name in enumerate(names)})


def test_figures_are_sums_by_language_and_source(make_tokenizer: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.open(make_tokenizer(byte_fallback=False, vocab_size=700))
    rows = [("ab ab", "en", "x"), ("漢字 é", "zh", "x"), ("ab", "en", "y")]
    found = Measured(tokenizer)
    found.add(batch(rows), threads=1)
    ids = [tokenizer.encode(text) for text, _, _ in rows]
    assert ids[1].count(0) == 1
    every = found.all.figures()
    assert (every["documents"], every["bytes"], every["words"]) == (3, 5 + 9 + 2, 5)
    assert every["tokens"] == sum(map(len, ids))
    assert every["bytes_per_token"] == round(16 / every["tokens"], 6)
    assert every["tokens_per_word"] == round(every["tokens"] / 5, 6)
    assert every["unknown_rate"] == round(1 / every["tokens"], 6)
    languages, sources = found.groups["languages"], found.groups["sources"]
    assert (languages["en"].tokens, languages["zh"].unknown, languages["en"].unknown) == (
        len(ids[0]) + len(ids[2]),
        1,
        0,
    )
    assert (sources["x"].documents, sources["y"].bytes) == (2, 2)
    assert found.used.sum() == every["tokens"]
    assert set(np.flatnonzero(found.used)) == {index for some in ids for index in some}


def test_an_artifact_is_measured(
    run_stage: Callable[..., Outcome], write_documents: Callable[..., Any], documents: list[str]
) -> None:
    given = write_documents(documents)
    config = TokenizerConfig.model_validate({"model": "byte-bpe", "vocab_size": 600})
    tokenizer = run_stage("tokenizer", config, {"input": given}).artifact
    figures = measure(tokenizer, given, 2, Silent())
    assert (figures["kind"], figures["vocab_size"], figures["documents"]) == ("tokenizer", 600, len(documents))
    assert figures["unknown"] == 0
    assert figures["changes"] == []
    assert figures["bytes"] == sum(len(text.encode()) for text in documents)
    assert 0 < figures["vocabulary_used"] <= 594
    assert figures["vocabulary_use"] == round(figures["vocabulary_used"] / 594, 6)
    assert figures["sources"]["different"] == 3
    assert len(figures["sources"]["top"]) == 2
    assert figures["languages"]["top"][0]["value"] == ""
    assert figures["languages"]["top"][0]["tokens"] == figures["tokens"]


@pytest.mark.parametrize("texts", [["é"], ["漢"]])
def test_spelled_bytes_are_counted(
    texts: list[str], run_stage: Callable[..., Outcome], write_documents: Callable[..., Any], documents: list[str]
) -> None:
    config = TokenizerConfig.model_validate({"model": "byte-bpe", "vocab_size": 264})
    tokenizer = run_stage("tokenizer", config, {"input": write_documents(["aaaa aaaa"])}).artifact
    assert measure(tokenizer, write_documents(texts, "other"), 5, Silent())["byte_rate"] == 1.0
