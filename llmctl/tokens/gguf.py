"""The tokenizer in the metadata of a GGUF file (github.com/ggml-org/ggml, docs/gguf.md, `tokenizer.ggml.*`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, pre_tokenizers

from llmctl.config.errors import InputError
from llmctl.tokens.bytebpe import byte_bpe, cut
from llmctl.tokens.huggingface import begun_with, described_files
from llmctl.tokens.imports import ROLES, from_sentencepiece
from llmctl.tokens.protobuf import Normalizer, written_model
from llmctl.tokens.tokenizer import FAST_FILE

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # as in SentencePiece
IDS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
MODEL_TYPES = {"llama": 2, "t5": 1}  # BPE, unigram

# Splitting style and whether digits stand alone, by the names of pre-tokenizers
# (github.com/ggml-org/llama.cpp, src/llama-vocab.cpp).
GPT2, SINGLE_DIGITS = ("gpt2", False), ("gpt2", True)
LLAMA3, QWEN2, GPT4O = ("gpt4", False), ("qwen2", False), ("o200k", False)
STYLES = {
    "default": GPT2,
    "gpt-2": GPT2,
    "gpt2": GPT2,
    "phi-2": GPT2,
    "jina-es": GPT2,
    "jina-de": GPT2,
    "roberta-bpe": GPT2,
    "mpt": GPT2,
    "olmo": GPT2,
    "smollm": SINGLE_DIGITS,
    "starcoder": SINGLE_DIGITS,
    "refact": SINGLE_DIGITS,
    "command-r": SINGLE_DIGITS,
    "exaone": SINGLE_DIGITS,
    "codeshell": SINGLE_DIGITS,
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "dbrx": LLAMA3,
    "smaug-bpe": LLAMA3,
    "chatglm-bpe": LLAMA3,
    "falcon3": LLAMA3,
    "pixtral": LLAMA3,
    "qwen2": QWEN2,
    "stablelm2": QWEN2,
    "hunyuan": QWEN2,
    "deepseek-r1-qwen": QWEN2,
    "gpt-4o": GPT4O,
    "llama4": GPT4O,
}


def from_gguf(metadata: Mapping[str, object]) -> dict[str, bytes]:
    """The files of a tokenizer directory, by name.

    Args:
        metadata: the values of a GGUF file by key, arrays as sequences.

    Raises:
        InputError: the kind or the pre-tokenizer is unknown, or the arrays do not fit each other; the key is named.
    """
    kind = metadata.get("tokenizer.ggml.model")
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    types = _numbers(metadata, "tokenizer.ggml.token_type", len(tokens), NORMAL)
    named = _named(metadata, tokens)
    template = metadata.get("tokenizer.chat_template", "")
    if not isinstance(template, str):
        raise _fault("tokenizer.chat_template", "is no string")
    if kind == "gpt2":
        return _byte_level(metadata, tokens, [int(one) for one in types], named, template)
    if kind not in MODEL_TYPES:
        raise _fault("tokenizer.ggml.model", f"is {kind!r}, which has no byte-exact form here; known: gpt2, llama, t5")
    scores = _numbers(metadata, "tokenizer.ggml.scores", len(tokens), 0)
    normalizer = Normalizer(
        rule="identity",
        charsmap=_charsmap(metadata),
        adds_space=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        trims=bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)),
    )
    ids = [tokens.index(named[role]) if role in named else -1 for role in ("unk_token", "bos_token", "eos_token")]
    ids[0] = next((index for index, one in enumerate(types) if one == UNKNOWN), ids[0])
    for index in {ids[1], ids[2]} - {-1}:
        types[index] = CONTROL
    pad = tokens.index(named["pad_token"]) if named.get("pad_token") not in (None, named.get("eos_token")) else -1
    model = written_model(
        ((text, score, int(one)) for text, score, one in zip(tokens, scores, types, strict=True)),
        model_type=MODEL_TYPES[str(kind)],
        normalizer=normalizer,
        ids=(ids[0], ids[1], ids[2], pad),
    )
    return from_sentencepiece(model, named, template)


def _byte_level(
    metadata: Mapping[str, object], tokens: list[str], types: list[int], named: dict[str, str], template: str
) -> dict[str, bytes]:
    pre = str(metadata.get("tokenizer.ggml.pre", "default"))
    if pre not in STYLES:
        raise _fault("tokenizer.ggml.pre", f"is {pre!r}, which is unknown; known: {', '.join(sorted(STYLES))}")
    split, digits = STYLES[pre]
    merges = [_pair(line) for line in _strings(metadata, "tokenizer.ggml.merges")]
    vocab = {text: index for index, text in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise _fault("tokenizer.ggml.tokens", "holds one token twice")
    unknown = next((part for pair in merges for part in (*pair, "".join(pair)) if part not in vocab), None)
    if unknown is not None:
        raise _fault("tokenizer.ggml.merges", f"merges {unknown!r}, which is no token")
    pre_tokenizer: Any = cut(split, digits=digits)
    if metadata.get("tokenizer.ggml.add_space_prefix"):
        pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    fast = byte_bpe(vocab, merges, pre_tokenizer, whole_words=split == "gpt4")
    special = [text for text, one in zip(tokens, types, strict=True) if one in (CONTROL, UNKNOWN)]
    special += [text for text in dict.fromkeys(named.values()) if text not in special]
    fast.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    others = [text for text, one in zip(tokens, types, strict=True) if one == USER_DEFINED and text not in special]
    fast.add_tokens([AddedToken(text, special=False, normalized=False) for text in others])
    if metadata.get("tokenizer.ggml.add_bos_token") and "bos_token" in named:
        begun_with(fast, named["bos_token"])
    return {FAST_FILE: fast.to_str(pretty=True).encode(), **described_files(named, tuple(special), template)}


def _named(metadata: Mapping[str, object], tokens: list[str]) -> dict[str, str]:
    """Texts of BOS, EOS, unknown and padding."""
    named = {}
    for role in ROLES:
        index = metadata.get(IDS[role])
        if index is None:
            continue
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            raise _fault(IDS[role], f"is {index!r}, but there are {len(tokens)} tokens")
        named[role] = tokens[index]
    if "eos_token" not in named:
        raise _fault(IDS["eos_token"], "is missing: nothing says which token ends a document")
    return named


def _strings(metadata: Mapping[str, object], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(one, str) for one in value):
        raise _fault(key, "is missing" if value is None else "is no array of strings")
    return list(value)


def _numbers(metadata: Mapping[str, object], key: str, size: int, default: float) -> list[float]:
    value = metadata.get(key)
    if value is None:
        return [default] * size
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != size:
        raise _fault(key, f"is no array of {size} numbers")
    return [float(one) for one in value]


def _charsmap(metadata: Mapping[str, object]) -> bytes:
    value = metadata.get("tokenizer.ggml.precompiled_charsmap", b"")
    try:
        return bytes(value)  # type: ignore[call-overload, no-any-return] # whatever holds numbers below 256
    except (TypeError, ValueError):
        raise _fault("tokenizer.ggml.precompiled_charsmap", "is no array of bytes") from None


def _pair(line: str) -> tuple[str, str]:
    left, _, right = line.partition(" ")
    if not left or not right or " " in right:
        raise _fault("tokenizer.ggml.merges", f"holds {line!r}, which is no pair")
    return left, right


def _fault(key: str, what: str) -> InputError:
    return InputError(f"{key} {what}", hint="the GGUF file is damaged, or of a kind that cannot be imported")
