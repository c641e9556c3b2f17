"""The tokenizer stage: determinism, sampling, and what does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from llmctl.config.collect import CollectConfig
from llmctl.config.errors import ConfigError, InputError, UsageError
from llmctl.config.load import build
from llmctl.config.tokens import TokenizerConfig
from llmctl.pipeline.execute import Outcome
from llmctl.tokens import train as training
from llmctl.tokens.quantize import SCORE_GRID, quantized
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.tokens.train import _measured, sentences_of, train, trained_files
from tests.tokenizers import write_tokenizer

RunStage = Callable[..., Outcome]


def config(**fields: Any) -> TokenizerConfig:
    return TokenizerConfig.model_validate({"vocab_size": 600, **fields})


@pytest.mark.parametrize("model", ["bpe", "unigram", "char", "word", "byte-bpe"])
def test_two_runs_give_the_same_bytes(model: str, documents: list[str]) -> None:
    assert trained_files(iter(documents), config(model=model)) == trained_files(iter(documents), config(model=model))


def test_the_number_of_threads_does_not_matter(tmp_path: Path, documents: list[str]) -> None:
    """The library reads RAYON_NUM_THREADS once, so each number needs a process of its own."""
    script = (
        "import json, sys; from llmctl.config.tokens import TokenizerConfig\n"
        "from llmctl.tokens.train import trained_files\n"
        "config = TokenizerConfig.model_validate({'model': 'byte-bpe', 'vocab_size': 800})\n"
        "files = trained_files(iter(json.load(open(sys.argv[1]))), config)\n"
        "sys.stdout.buffer.write(files['tokenizer.json'])"
    )
    (tmp_path / "texts.json").write_text(json.dumps(documents))
    made = []
    for threads in ("1", "3"):
        command = [sys.executable, "-c", script, str(tmp_path / "texts.json")]
        environment = {**os.environ, "RAYON_NUM_THREADS": threads}
        made.append(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert made[0] == made[1]
    assert len(json.loads(made[0])["model"]["vocab"]) == 800


@pytest.mark.parametrize(
    ("split", "digits", "merges", "number", "bracketed"),
    [
        ("gpt4", False, 6, ["123", "4"], ["(abc", ")"]),
        ("gpt4", True, 4, ["1", "2", "3", "4"], ["(abc", ")"]),
        ("gpt2", False, 5, ["1234"], ["(", "abc", ")"]),
        ("gpt2", True, 2, ["1", "2", "3", "4"], ["(", "abc", ")"]),
    ],
)
def test_byte_bpe_is_cut_as_configured(
    split: str, digits: bool, merges: int, number: list[str], bracketed: list[str], tmp_path: Path
) -> None:
    wanted = {"model": "byte-bpe", "split": split, "split_digits": digits, "vocab_size": 262 + merges}
    tokenizer = Tokenizer.open(write_tokenizer(tmp_path, ["x1234x(abc)x" * 20], config(**wanted)))

    def cut(text: str) -> list[str]:
        return [tokenizer.decode([index]) for index in tokenizer.encode(text)]

    assert cut("1234") == number
    assert cut("(abc)") == bracketed


def test_word_and_char_hold_what_is_most_frequent(tmp_path: Path) -> None:
    text = " the cat the dog and the the and the cat \u00e9\n"
    words = Tokenizer.open(write_tokenizer(tmp_path / "word", [text], config(model="word", vocab_size=265)))
    assert [words.piece_bytes(index) for index in range(262, 265)] == [b" the", b" and", b" cat"]
    assert [words.piece_bytes(index) for index in words.encode("the and cow")] == [
        *each_byte("the"),
        b" and",
        *each_byte(" cow"),
    ]
    chars = Tokenizer.open(write_tokenizer(tmp_path / "char", [text], config(model="char", vocab_size=500)))
    assert chars.vocab_size == 262 + len(set(text) - {"\n"})
    assert [chars.piece_bytes(index).decode() for index in chars.encode("caf\u00e9")] == ["c", "a", "f", "\u00e9"]


def each_byte(text: str) -> list[bytes]:
    return [bytes([byte]) for byte in text.encode()]


def test_what_byte_kinds_cannot_do_is_refused(documents: list[str]) -> None:
    for model in ("word", "byte-bpe"):
        with pytest.raises(ValueError, match="byte_fallback cannot be off"):
            config(model=model, byte_fallback=False)
    with pytest.raises(UsageError, match="larger than the text supports, at most 26"):
        trained_files(iter(["abc abc"]), config(model="byte-bpe"))


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


def test_unigram_scores_lie_on_the_grid(make_tokenizer: Callable[..., Path]) -> None:
    model = (make_tokenizer(model="unigram") / "tokenizer.model").read_bytes()
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    scores = [processor.get_score(index) / SCORE_GRID for index in range(processor.get_piece_size())]
    assert len(set(scores)) > 100
    assert all(score == round(score) for score in scores)
    assert quantized(model) == model
