"""Round trips, special tokens, and the same ids in transformers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmctl.config.errors import InputError
from llmctl.tokens.segments import SEGMENT_CHARS, segments
from llmctl.tokens.tokenizer import SPECIALS, Tokenizer

ALPHABETS = ("ab", " \n", "a =-_.<>/0123x4s|", "é漢▁▅⁇\t\r\0😀 a\n\u00a0", " -=#_*\n", "a b", "aaaab")
NASTY = st.text(st.sampled_from("a b\n\t\r\0▁▅é漢😀<|im_end|>0x41"), max_size=60)
BIDI = st.text(st.characters(codec="utf-8", categories=["Cf", "Mn", "Mc", "Cn", "Co", "So", "Zs", "Nd"]), max_size=40)
JOINS = "\0\u0301\u202e\u2066\u200d\ufe0f👩🏽‍🚀🇩🇪e \U000e0041\U0003ffff\ufeff\ufffe"
JOINED = st.text(st.sampled_from(JOINS), max_size=40)
ANY_TEXT = st.one_of(st.text(max_size=80), NASTY, BIDI, JOINED)
RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)


KINDS: list[dict[str, object]] = [
    {"model": "bpe"},
    {"model": "unigram"},
    {"model": "char"},
    {"model": "word"},
    {"model": "byte-bpe"},
    {"model": "byte-bpe", "split": "gpt2", "split_digits": False},
]


UNKNOWING: list[dict[str, object]] = [{"byte_fallback": False}, {"model": "char", "byte_fallback": False}]


@pytest.fixture(params=KINDS, ids=lambda fields: "-".join(map(str, fields.values())))
def tokenizer(request: pytest.FixtureRequest, make_tokenizer: Callable[..., Path]) -> Tokenizer:
    return Tokenizer.open(make_tokenizer(**request.param))


@RELAXED
@given(text=ANY_TEXT)
def test_every_string_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.changes == ()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.special.values())
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())


def test_special_ids_and_their_bytes(tokenizer: Tokenizer) -> None:
    assert [tokenizer.special[text] for text in SPECIALS] == [0, 1, 2, 3, 4, 5]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 3)
    assert tokenizer.stop_ids == (2, 5)
    assert tokenizer.vocab_size == tokenizer.byte_lengths.size <= 1000
    assert tokenizer.byte_lengths.dtype == np.int32
    assert tokenizer.byte_lengths[:6].tolist() == [0] * 6
    assert [tokenizer.piece_bytes(index) for index in range(6)] == [b""] * 6
    assert tokenizer.decode([1, *tokenizer.encode("a b"), 2, 5]) == "a b"


def test_a_special_string_in_text_is_text(tokenizer: Tokenizer) -> None:
    for text in SPECIALS:
        ids = tokenizer.encode(f"x{text}y")
        assert min(ids) >= len(SPECIALS)
        assert tokenizer.decode(ids) == f"x{text}y"


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_newlines_share_no_piece_with_other_characters(model: str, make_tokenizer: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.open(make_tokenizer(model=model))
    pieces = [tokenizer.piece_bytes(index) for index in range(tokenizer.vocab_size)]
    assert b"\n" in pieces
    assert [piece for piece in pieces if b"\n" in piece and piece.strip(b"\n")] == []
    assert [piece for piece in pieces if b" " in piece.lstrip(b" ")] == []


def test_batches_and_threads_give_the_same_ids(tokenizer: Tokenizer, documents: list[str]) -> None:
    alone = [tokenizer.encode(text) for text in documents]
    for threads in (1, 3):
        assert [ids.tolist() for ids in tokenizer.encode_batch(documents, threads=threads)] == alone
    assert tokenizer.encode("") == []
    assert tokenizer.encode_batch([]) == []


@RELAXED
@given(text=st.text(st.sampled_from("ab \n▁"), max_size=40), repeat=st.integers(1, 500))
def test_segments_are_the_text(text: str, repeat: int) -> None:
    whole = text * repeat
    parts = list(segments(whole))
    assert "".join(parts) == whole
    assert all(part == "▁" or "▁" not in part for part in parts) or len(whole) == 0


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_long_text_is_cut_without_changing_its_ids(
    model: str, make_tokenizer: Callable[..., Path], documents: list[str]
) -> None:
    directory = make_tokenizer(model=model)
    tokenizer = Tokenizer.open(directory)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    text = "\n\n".join(documents)
    assert len(text) > 8 * SEGMENT_CHARS
    assert max(map(len, segments(text))) <= SEGMENT_CHARS
    assert len(next(segments("x" * 3 * SEGMENT_CHARS + " y"))) == 3 * SEGMENT_CHARS
    whole = processor.encode(text)
    if model == "bpe":  # exact
        assert tokenizer.encode(text) == whole
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="cannot be encoded"):
        tokenizer.encode("a\ud800")


def test_without_bytes_unknown_characters_are_unk(make_tokenizer: Callable[..., Path]) -> None:
    plain = Tokenizer.open(make_tokenizer(byte_fallback=False, vocab_size=700))
    assert plain.unk_id == 0
    assert plain.changes == ("characters outside the vocabulary become the unknown id", "U+2581 becomes a space")
    ids = plain.encode("a▁▁漢b")
    assert ids.count(plain.special["<unk>"]) == 1
    assert plain.decode(plain.encode("plain text\n")) == "plain text\n"


def test_open_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot open the tokenizer.*tokenizer\.model"):
        Tokenizer.open(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    (tmp_path / "chat_template.jinja").write_text("")
    with pytest.raises(InputError, match="cannot open the tokenizer"):
        Tokenizer.open(tmp_path)


def probes(tokenizer: Tokenizer, documents: list[str]) -> Iterator[str]:
    """Real text, strings over small alphabets, and joined pieces of the vocabulary."""
    rng = random.Random(3)
    code = documents[-1]
    yield from documents
    yield from ("-" * 300, "= " * 77, " " * 201, "\n" * 65, "<0x41><s></s><|im_end|>", "")
    for _ in range(500):
        alphabet = rng.choice(ALPHABETS)
        yield "".join(rng.choice(alphabet) for _ in range(rng.randint(0, 60)))
        start = rng.randrange(len(code) - 300)
        yield code[start : start + rng.randint(0, 300)]
        pieces = [tokenizer.piece_bytes(rng.randrange(6, tokenizer.vocab_size)) for _ in range(4)]
        yield b"".join(pieces).decode("utf-8", errors="replace") * rng.randint(1, 3)


@pytest.mark.parametrize("fields", [*KINDS, *UNKNOWING], ids=str)
def test_transformers_gives_the_same_ids(
    fields: dict[str, object], make_tokenizer: Callable[..., Path], documents: list[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    directory = make_tokenizer(**fields)
    (directory / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    ours = Tokenizer.open(directory)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    fast = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    assert len(theirs) == ours.vocab_size
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 3)
    assert theirs("a b").input_ids == [1, *ours.encode("a b")]
    different = []
    for text in probes(ours, documents):
        ids = ours.encode(text)
        given_ids = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
        if ids != given_ids or ids != fast(text, add_special_tokens=False, split_special_tokens=True).input_ids:
            different.append(text)
        elif fields.get("byte_fallback", True):
            assert theirs.decode(given_ids) == text
    assert different == []


def test_shakespeare_comes_back(tokenizer: Tokenizer, shakespeare: str) -> None:
    assert tokenizer.decode(tokenizer.encode(shakespeare)) == shakespeare
