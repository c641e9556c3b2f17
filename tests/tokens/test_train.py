"""The tokenizer stage: determinism, sampling, and what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmctl.config.collect import CollectConfig
from llmctl.config.errors import ConfigError, InputError, UsageError
from llmctl.config.load import build
from llmctl.config.tokens import TokenizerConfig
from llmctl.pipeline.execute import Outcome
from llmctl.tokens import train as training
from llmctl.tokens.quantize import SCORE_GRID, quantized
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.tokens.train import _measured, sentences_of, train

RunStage = Callable[..., Outcome]


def config(**fields: Any) -> TokenizerConfig:
    return TokenizerConfig.model_validate({"vocab_size": 600, **fields})


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_two_runs_give_the_same_bytes(model: str, documents: list[str]) -> None:
    def once() -> bytes:
        return train((part for text in documents for part in sentences_of(text)), config(model=model))

    assert once() == once()


def test_stage_writes_a_whole_tokenizer(run_stage: RunStage, write_documents: Any, documents: list[str]) -> None:
    artifact = run_stage("tokenizer", config(), {"input": write_documents(documents)}).artifact
    names = {"tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert {path.name for path in artifact.files()} == names | {"chat_template.jinja"}
    assert artifact.manifest.schema_ == "llmctl.tokenizer/1"
    assert artifact.manifest.semantic["vocab_size"] == 600
    assert artifact.manifest.totals["training_documents"] == len(documents)
    assert artifact.manifest.totals["training_bytes"] == sum(len(text.encode()) for text in documents)
    assert Tokenizer.open(artifact.data).vocab_size == 600


def test_a_large_input_is_sampled_by_hash(run_stage: RunStage, write_documents: Any, documents: list[str]) -> None:
    size = sum(len(text.encode()) for text in documents[:100])
    given = {"input": write_documents(documents[:100])}
    first = run_stage("tokenizer", config(max_training_bytes=size // 2), given).artifact
    again = run_stage("tokenizer", config(max_training_bytes=size // 2), given, force=True).artifact
    assert 0.3 * size < float(first.manifest.totals["training_bytes"]) < 0.7 * size
    assert first.digest == again.digest


def test_an_artifact_is_measured_without_reading_it(run_stage: RunStage, tmp_path: Path, documents: list[str]) -> None:
    """Its manifest says the same as its text, which is moved away here."""
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    collected = run_stage("collect", CollectConfig(sources=(str(path),))).artifact
    assert _measured(replace(collected, path=tmp_path / "away")) == (
        len(documents),
        sum(len(text.encode()) for text in documents),
    )


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_too_large_a_vocabulary_names_the_largest_that_works(model: str, documents: list[str]) -> None:
    def attempt(size: int) -> bytes:
        return train(iter(sentences_of(documents[0] * 3)), config(model=model, vocab_size=size))

    with pytest.raises(UsageError, match=r"vocabulary of 50000 is larger than the text supports") as caught:
        attempt(50_000)
    largest = int(caught.value.hint.split()[2])
    assert caught.value.hint == f"use --vocab-size {largest} or less, or give more text"
    assert attempt(largest)
    with pytest.raises(UsageError, match=f"at most {largest}"):
        attempt(largest + 1)


def test_too_small_a_vocabulary_names_the_smallest_that_works(documents: list[str]) -> None:
    with pytest.raises(UsageError, match=r"smaller than the characters of the text need, at least (\d+)") as caught:
        train(iter(sentences_of(documents[0])), config(vocab_size=264))
    smallest = int(caught.value.hint.split()[2])
    assert train(iter(sentences_of(documents[0])), config(vocab_size=smallest))


def test_a_vocabulary_without_room_is_refused_before_any_work() -> None:
    with pytest.raises(ConfigError, match="at least 264"):
        build(TokenizerConfig, [{"vocab_size": 100}])
    assert build(TokenizerConfig, [{"vocab_size": 100, "byte_fallback": False}]).vocab_size == 100


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text_is_an_input_error(texts: list[str], run_stage: RunStage, write_documents: Any) -> None:
    with pytest.raises(InputError, match="holds no text"):
        run_stage("tokenizer", config(), {"input": write_documents(texts)})


def test_sentencepiece_prints_nothing(documents: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    train(iter(sentences_of(documents[-1])), config())
    with pytest.raises(UsageError):
        train(iter(sentences_of("only this")), config())
    assert capfd.readouterr() == ("", "")


def test_what_sentencepiece_would_skip_is_trained_on() -> None:
    text = "tab\tseparated words " * 50
    parts = "".join(sentences_of(text)).split(training.DELIMITER)
    assert "\t" not in "".join(parts)
    assert parts[:2] == ["tab", ""]  # the cut leaves both neighbours
    model = train(iter(sentences_of(text)), config(vocab_size=290))
    assert b"separated" in model


def test_unigram_scores_lie_on_the_grid(unigram: Tokenizer) -> None:
    scores = [unigram._processor.get_score(index) / SCORE_GRID for index in range(unigram.vocab_size)]
    assert len(set(scores)) > 100
    assert all(score == round(score) for score in scores)
    model = unigram._processor.serialized_model_proto()
    assert quantized(model) == model
