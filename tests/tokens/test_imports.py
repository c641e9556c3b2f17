"""Tokenizers of others: the same ids as the libraries that they belong to."""

from __future__ import annotations

import base64
import io
import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from llmctl.config.errors import InputError
from llmctl.config.tokens import ImportTokenizerConfig
from llmctl.tokens.bytelevel import BYTES, all_bytes_of, bytes_of, spelled
from llmctl.tokens.gguf import STYLES, from_gguf
from llmctl.tokens.importing import product, tokenizer_files
from llmctl.tokens.imports import from_sentencepiece, from_tiktoken, from_tokenizer_json
from llmctl.tokens.tokenizer import Tokenizer

OPTIONS = ImportTokenizerConfig.model_validate({})


def opened(directory: Path, files: dict[str, bytes]) -> Tokenizer:
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return Tokenizer.open(directory)


def texts(documents: list[str]) -> Iterator[str]:
    rng = random.Random(11)
    code = documents[-1]
    yield from documents[:40]
    yield from ("", " ", "  a", "a  ", "\n", "é漢🚀", "<s>x</s>", "ﬁ ①\u00a0x")
    for _ in range(500):
        start = rng.randrange(len(code) - 200)
        yield code[start : start + rng.randint(0, 200)]
        yield "".join(rng.choice(" ab\n\t1é漢🚀'") for _ in range(rng.randint(0, 40)))


def foreign_model(documents: list[str], **options: Any) -> bytes:
    """A SentencePiece model with the library's own defaults: NFKC, a space in front, runs of spaces shortened."""
    written = io.BytesIO()
    given = {"vocab_size": 900, "byte_fallback": True, "minloglevel": 3, "character_coverage": 0.99, **options}
    lines = (line for text in documents for line in text.split("\n"))
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=written, **given)
    return written.getvalue()


LLAMA = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "bpe"},
        {"model_type": "unigram"},
        {"model_type": "bpe", **LLAMA},
        {"model_type": "unigram", **LLAMA, "add_dummy_prefix": False},
    ],
    ids=["bpe", "unigram", "llama", "plain"],
)
def test_sentencepiece_keeps_its_ids(options: dict[str, Any], documents: list[str], tmp_path: Path) -> None:
    model = foreign_model(documents, **options)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = opened(tmp_path, from_sentencepiece(model))
    for text in texts(documents):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))
    assert (ours.bos_id, ours.eos_id, ours.unk_id) == (1, 2, None)
    stated = ("U+2581 becomes a space", "text is normalised first: nmt_nfkc", "runs of spaces are shortened")
    assert ours.changes == (stated[:1] if LLAMA.items() <= options.items() else stated)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_its_tokenizer_json_gives_the_same_ids(kind: str, documents: list[str], tmp_path: Path) -> None:
    files = from_sentencepiece(foreign_model(documents, model_type=kind, **LLAMA))
    theirs = opened(tmp_path / "sentencepiece", files)
    del files["tokenizer.model"]
    ours = opened(tmp_path / "fast", files)
    different = [text for text in texts(documents) if ours.encode(text) != theirs.encode(text)]
    assert len(different) <= (0 if kind == "bpe" else 5)  # sums of 32-bit scores tie elsewhere than 64-bit ones


def byte_level(documents: list[str], *, prefix: bool = False) -> FastTokenizer:
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    fast.train_from_iterator(documents, trainer)
    return fast


def test_tokenizer_json_keeps_its_ids(documents: list[str], tmp_path: Path) -> None:
    fast = byte_level(documents)
    source = fast.to_str()
    config = {"eos_token": {"content": "<|endoftext|>"}, "chat_template": "{{ messages[0].content }}"}
    ours = opened(tmp_path, from_tokenizer_json(source, config))
    assert (tmp_path / "tokenizer.json").read_text() == source
    assert (ours.changes, ours.vocab_size, ours.eos_id, ours.bos_id, ours.pad_id) == ((), 700, 0, 0, 0)
    assert ours.stop_ids == (0, 1)
    assert ours.chat_template == "{{ messages[0].content }}"
    fast.encode_special_tokens = True
    for text in texts(documents):
        assert ours.encode(text) == fast.encode(text).ids
        assert ours.decode(ours.encode(text)) == text
    assert 0 not in ours.encode("<|endoftext|>")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(documents[0]).input_ids == ours.encode(documents[0])
    assert (theirs.eos_token_id, theirs.chat_template) == (0, ours.chat_template)


def test_what_normalises_says_so(documents: list[str], tmp_path: Path) -> None:
    fast = byte_level(documents, prefix=True)
    fast.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    ours = opened(tmp_path, from_tokenizer_json(fast.to_str()))
    assert ours.changes == ("text is normalised first: NFKC, Lowercase",)
    assert ours.decode(ours.encode("ﬁx It")) == "fix it"


def ranks_file(fast: FastTokenizer) -> bytes:
    """The pieces of byte-level BPE as tiktoken writes them, without the special tokens."""
    ordered = sorted(fast.get_vocab().items(), key=lambda item: item[1])
    pieces = [bytes_of(piece) for piece, _ in ordered if set(piece) <= BYTES.keys() and not piece.startswith("<|")]
    return b"".join(base64.b64encode(piece) + f" {rank}\n".encode() for rank, piece in enumerate(pieces))


def by_hand(ranks: dict[bytes, int], word: bytes) -> list[int]:
    """tiktoken's rule: the adjacent pair whose whole has the lowest rank, the leftmost of equals, is joined."""
    if word in ranks:
        return [ranks[word]]
    parts = [word[at : at + 1] for at in range(len(word))]
    while True:
        pairs = [(ranks[a + b], at) for at, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]
        if not pairs:
            return [ranks[part] for part in parts]
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def test_tiktoken_ranks_join_as_tiktoken_does(documents: list[str], tmp_path: Path) -> None:
    content = ranks_file(byte_level([*documents, "aaaaaaa aaaa abababab " * 90]))
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in content.splitlines()}
    ours = opened(tmp_path, from_tiktoken(content, split="gpt2"))
    assert ours.vocab_size == len(ranks) + 1
    assert (ours.eos_token, ours.eos_id) == ("<|endoftext|>", len(ranks))
    cutter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in (*texts(documents), "a" * 31, "ab" * 17 + "a"):
        words = [bytes_of(word) for word, _ in cutter.pre_tokenize_str(text)]
        assert ours.encode(text) == [index for word in words for index in by_hand(ranks, word)]
        assert ours.decode(ours.encode(text)) == text


def test_tiktoken_special_tokens_have_the_ids_given(documents: list[str], tmp_path: Path) -> None:
    content = ranks_file(byte_level(documents))
    last = content.count(b"\n")
    special = {"<|endoftext|>": last, "<|eot_id|>": last + 5}
    ours = opened(tmp_path, from_tiktoken(content, special=special, template="{{ bos_token }}"))
    assert ours.vocab_size == last + 6
    assert ours.stop_ids == (last, last + 5)
    with pytest.raises(InputError, match="two tokens have one id"):
        from_tiktoken(content, special={"<|endoftext|>": 7})


def gguf_of(fast: FastTokenizer, **changed: object) -> dict[str, object]:
    described = json.loads(fast.to_str())["model"]
    vocab = sorted(described["vocab"], key=described["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": vocab,
        "tokenizer.ggml.token_type": [3 if text.startswith("<|") else 1 for text in vocab],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in described["merges"]],
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": "{{ messages[0].content }}",
        **changed,
    }


def test_gguf_of_the_gpt2_kind(documents: list[str], tmp_path: Path) -> None:
    fast = byte_level(documents)
    ours = opened(tmp_path, from_gguf(gguf_of(fast)))
    assert (ours.eos_token, ours.changes, ours.special) == ("<|im_end|>", (), {"<|endoftext|>": 0, "<|im_end|>": 1})
    fast.encode_special_tokens = True
    for text in texts(documents):
        assert ours.encode(text) == fast.encode(text).ids


@pytest.mark.parametrize("pre", sorted(STYLES))
def test_every_pre_tokenizer_round_trips(pre: str, documents: list[str], tmp_path: Path) -> None:
    ours = opened(tmp_path, from_gguf(gguf_of(byte_level(documents[:20]), **{"tokenizer.ggml.pre": pre})))
    for text in (documents[0], "It's 12345 (e.g. <b>x\u0301</b>)\r\n\n  漢字🚀\u2028 "):
        assert ours.decode(ours.encode(text)) == text


def test_gguf_of_the_llama_kind(documents: list[str], tmp_path: Path) -> None:
    model = foreign_model(documents, model_type="bpe", **LLAMA)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = theirs.get_piece_size()
    kinds = [2, 3, 3, *(6 if theirs.is_byte(index) else 1 for index in range(3, size))]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [theirs.id_to_piece(index) for index in range(size)],
        "tokenizer.ggml.scores": [theirs.get_score(index) for index in range(size)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    ours = opened(tmp_path, from_gguf(metadata))
    assert (ours.bos_token, ours.eos_token, ours.vocab_size) == ("<s>", "</s>", size)
    for text in texts(documents):
        assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model is 'bert'"),
        ({"tokenizer.ggml.pre": "unheard-of"}, "tokenizer.ggml.pre is 'unheard-of', which is unknown"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens is no array of strings"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "holds 'a b c', which is no pair"),
        ({"tokenizer.ggml.merges": ["zz zz"]}, "merges 'zz', which is no token"),
        ({"tokenizer.ggml.token_type": [1]}, "tokenizer.ggml.token_type is no array of 700 numbers"),
        ({"tokenizer.ggml.eos_token_id": 700}, "eos_token_id is 700, but there are 700 tokens"),
        ({"tokenizer.ggml.eos_token_id": None}, "eos_token_id is missing"),
        ({"tokenizer.chat_template": 5}, "tokenizer.chat_template is no string"),
    ],
)
def test_a_damaged_gguf_names_the_key(changed: dict[str, object], fault: str, documents: list[str]) -> None:
    with pytest.raises(InputError, match=fault):
        from_gguf(gguf_of(byte_level(documents[:30] + documents[-1:]), **changed))


def test_what_lies_beside_is_read(documents: list[str], tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    (given / "tokenizer.json").write_text(byte_level(documents).to_str())
    (given / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    (given / "chat_template.jinja").write_text("{{ messages[0].content }}")
    ours = opened(tmp_path / "out", tokenizer_files(given / "tokenizer.json", OPTIONS))
    assert (ours.eos_id, ours.chat_template) == (1, "{{ messages[0].content }}")
    assert tokenizer_files(given, OPTIONS) == tokenizer_files(given / "tokenizer.json", OPTIONS)
    made = product(ours, "tokenizer.json")
    assert made.schema == "llmctl.tokenizer/1"
    assert made.semantic["special"] == {"<|endoftext|>": 0, "<|im_end|>": 1}
    assert made.totals == {"vocab_size": 700}


def test_kinds_are_told_by_content(documents: list[str], tmp_path: Path) -> None:
    ranks = tmp_path / "tokenizer.model"  # as Llama 3 calls its ranks
    ranks.write_bytes(ranks_file(byte_level(documents)))
    assert "tokenizer.model" not in tokenizer_files(ranks, OPTIONS)
    ranks.write_bytes(foreign_model(documents, model_type="bpe"))
    assert "tokenizer.model" in tokenizer_files(ranks, OPTIONS)


def wordpiece() -> bytes:
    fast = FastTokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    fast.decoder = decoders.WordPiece()
    fast.add_special_tokens([AddedToken("[UNK]", special=True)])
    return fast.to_str().encode()


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("tokenizer.json", b"{}", "not a tokenizer.json"),
        ("tokenizer.json", b"\xff", "no UTF-8 text"),
        ("x.model", b"not a model", "not a SentencePiece model"),
        ("x.tiktoken", b"YQ== 0\nYg== b\n", "line 2 is no token in base64"),
        ("x.tiktoken", b"YQ== 0\nYQ== 1\n", "line 2 is no token in base64"),
        ("x.tiktoken", b"YQ== 0\n", "the ranks lack the byte 0x00"),
        ("tokenizer.json", wordpiece(), "does not say which token ends a document"),
    ],
)
def test_a_damaged_file_is_refused(name: str, content: bytes, fault: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=fault):
        tokenizer_files(tmp_path / name, OPTIONS)


def test_ids_that_stand_for_no_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its decoder is WordPiece"):
        opened(tmp_path, from_tokenizer_json(wordpiece().decode(), {"eos_token": "[UNK]"}))


def test_an_empty_directory_is_named(tmp_path: Path, make_tokenizer: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="holds no tokenizer"):
        tokenizer_files(tmp_path, OPTIONS)
    directory = make_tokenizer(model="byte-bpe")
    files = tokenizer_files(directory, OPTIONS)
    assert opened(tmp_path / "again", files).encode("a b") == Tokenizer.open(directory).encode("a b")
    assert files["tokenizer_config.json"] == (directory / "tokenizer_config.json").read_bytes()


def test_many_pieces_are_spelled_as_each_is() -> None:
    plain = [spelled(bytes(some)) for some in ([0, 10, 32, 255], [65, 97], [0xC3, 0xA9], [])]
    strange = ["é€", "\x80", "a\U0010fffeb", "\uffff", "\n"]
    for pieces in (plain, strange, [*plain, *strange], []):
        assert all_bytes_of(pieces) == [bytes_of(piece) for piece in pieces]
    assert all_bytes_of(plain) == [b"\x00\n \xff", b"Aa", b"\xc3\xa9", b""]
