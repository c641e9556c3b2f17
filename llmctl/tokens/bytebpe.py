"""Byte-level BPE and word vocabularies, in the `tokenizers` library's form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from llmctl.config.errors import UsageError
from llmctl.config.tokens import TokenizerConfig
from llmctl.tokens.bytelevel import ALPHABET, spelled
from llmctl.tokens.engines import SPECIALS
from llmctl.tokens.huggingface import with_specials

# How text is cut before merges; no piece crosses a cut. GPT-2's and GPT-4's patterns as published
# (github.com/openai/gpt-2, src/encoder.py; github.com/openai/tiktoken, tiktoken_ext/openai_public.py).
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {"gpt2": GPT2, "gpt4": LLAMA3, "qwen2": QWEN2, "o200k": O200K}
WORD = r"\n+| ?[^ \n]+| "


def cut(split: str, *, digits: bool) -> Any:
    """The pre-tokenizer of a splitting style, every digit apart where `digits` says so."""
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if split == "gpt2":  # built into the library, and as other tools write it
        return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    pattern = pre_tokenizers.Split(Regex(PATTERNS[split]), behavior="isolated")
    return pre_tokenizers.Sequence([*steps, pattern, _bytes_only()])


def byte_bpe(
    vocab: dict[str, int], merges: Sequence[tuple[str, str]], pre_tokenizer: Any, *, whole_words: bool = False
) -> FastTokenizer:
    """A byte-level BPE tokenizer without special tokens.

    Args:
        vocab: pieces in the byte-level alphabet to ids.
        merges: pairs of pieces, the first merged first.
        pre_tokenizer: how text is cut before.
        whole_words: whether what lies between two cuts, if it is a piece, is taken whole, as tiktoken does.
    """
    fast = FastTokenizer(models.BPE(vocab=vocab, merges=list(merges), ignore_merges=whole_words))
    fast.pre_tokenizer = pre_tokenizer
    fast.decoder = decoders.ByteLevel()
    return fast


def train_byte_bpe(texts: Iterator[str], config: TokenizerConfig) -> FastTokenizer:
    """Train byte-level BPE; the same texts and configuration give the same tokenizer on any number of threads.

    Raises:
        UsageError: the text supports fewer merges than asked for.
    """
    fast = byte_bpe({}, [], cut(config.split, digits=config.split_digits))
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=list(ALPHABET),
        max_token_length=config.max_piece_chars,
        show_progress=False,
    )
    fast.train_from_iterator(texts, trainer)
    size = fast.get_vocab_size()
    if size < config.vocab_size:
        raise UsageError(
            f"vocabulary of {config.vocab_size} is larger than the text supports, at most {size}",
            hint=f"use --vocab-size {size} or less, or give more text",
        )
    return with_specials(fast)


def word_level(words: Iterable[str], vocab_size: int) -> FastTokenizer:
    """A vocabulary of whole words; a word outside it is spelled in bytes.

    Args:
        words: the most frequent first, a space before each that followed one.
        vocab_size: at most so many ids, the special ones and 256 bytes included.
    """
    pieces = list(SPECIALS) + list(ALPHABET)
    known = set(pieces)
    for word in words:
        piece = spelled(word.encode())
        if len(pieces) < vocab_size and piece not in known:
            pieces.append(piece)
            known.add(piece)
    steps = [pre_tokenizers.Split(Regex(WORD), behavior="isolated"), _bytes_only()]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    return with_specials(byte_bpe(vocab, [], pre_tokenizers.Sequence(steps), whole_words=True))


def _bytes_only() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
