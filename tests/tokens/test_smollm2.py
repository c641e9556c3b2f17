"""The tokenizer of a real model, from its GGUF metadata, against one built by hand for the `tokenizers` library."""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from llmctl.tokens.chat import render_prompt_text
from llmctl.tokens.gguf import from_gguf
from llmctl.tokens.tokenizer import Tokenizer
from tests.smollm2 import smollm2_gguf

UNKNOWN = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2}  # bytes that its vocabulary lacks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def metadata() -> Mapping[str, object]:
    gguf = pytest.importorskip("gguf")
    fields = gguf.GGUFReader(smollm2_gguf()).fields
    return {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer.")}


@pytest.fixture(scope="module")
def imported(metadata: Mapping[str, object], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("smollm2")
    for name, content in from_gguf(metadata).items():
        (directory / name).write_bytes(content)
    return Tokenizer.open(directory)


@pytest.fixture(scope="module")
def reference(metadata: Mapping[str, object]) -> FastTokenizer:
    """What SmolLM2 publishes as tokenizer.json: every digit alone, then GPT-2's splitting."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = metadata["tokenizer.ggml.merges"]
    assert isinstance(tokens, list)
    assert isinstance(types, list)
    assert isinstance(merges, list)
    vocab = {token: index for index, token in enumerate(tokens)}
    fast = FastTokenizer(models.BPE(vocab=vocab, merges=[tuple(line.split(" ")) for line in merges]))
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    fast.decoder = decoders.ByteLevel()
    controls = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in controls])
    fast.encode_special_tokens = True
    return fast


def strings(count: int) -> Iterator[str]:
    """Half random over all of Unicode and over small alphabets, half cut from real code and JSON."""
    rng = random.Random(5)
    real = inspect.getsource(random) + inspect.getsource(json) + inspect.getsource(inspect)
    scalars = [*range(0xD800), *range(0xE000, 0x110000)]
    small = " \n\t0123456789abcXYZ.,'!é漢🚀\u0301\u200d<|im_start|>"
    for number in range(count):
        if number % 2:
            start = rng.randrange(len(real) - 400)
            yield real[start : start + rng.randint(0, 400)]
        elif number % 4:
            yield "".join(chr(rng.choice(scalars)) for _ in range(rng.randint(0, 60)))
        else:
            yield "".join(rng.choice(small) for _ in range(rng.randint(0, 100)))


def test_ten_thousand_strings_have_equal_ids(imported: Tokenizer, reference: FastTokenizer) -> None:
    texts = list(strings(10_000))
    expected = [encoding.ids for encoding in reference.encode_batch(texts, add_special_tokens=False)]
    found = [ids.tolist() for ids in imported.encode_batch(texts, threads=2)]
    assert [text for text, a, b in zip(texts, found, expected, strict=True) if a != b] == []
    whole = [text for text in texts if not set(text.encode()) & UNKNOWN]
    assert len(whole) > 5_000
    assert [text for text in whole if imported.decode(imported.encode(text)) != text] == []


def test_its_facts_are_the_published_ones(imported: Tokenizer) -> None:
    assert imported.vocab_size == 49_152
    assert imported.changes == ("bytes without an id (04 06 13 14 16 1d f1 f2) are dropped",)
    assert (imported.bos_token, imported.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (imported.bos_id, imported.eos_id, imported.pad_id) == (1, 2, 2)
    assert imported.stop_ids == (2, 0)
    assert imported.encode("Hello, 123!") == [19556, 28, 216, 33, 34, 35, 17]
    assert render_prompt_text(imported, [{"role": "user", "content": "Hi"}]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_transformers_opens_it(imported: Tokenizer, metadata: Mapping[str, object], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for name, content in from_gguf(metadata).items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in strings(200):
        assert theirs(text, split_special_tokens=True).input_ids == imported.encode(text)
