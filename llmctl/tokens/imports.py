"""Tokenizers of others as files of ours: `tokenizer.json`, SentencePiece, tiktoken ranks, GGUF metadata.

Every function takes the content, and gives the files of a tokenizer directory by name; nothing is run, and what
does not fit is an `InputError`. What a file does not say (which token ends a document, the chat template) may be
given by the caller, in the words of `tokenizer_config.json`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import sentencepiece
from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer

from llmctl.config.errors import InputError
from llmctl.tokens.bytebpe import byte_bpe, cut
from llmctl.tokens.bytelevel import spelled
from llmctl.tokens.huggingface import begun_with, described_files, foreign_fast, merges_of
from llmctl.tokens.tokenizer import ENDS, FAST_FILE, MODEL_FILE, name_of

Config = Mapping[str, Any]
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")

# Names by which published tokenizers call these tokens, for files that do not say; the first that exists is taken.
USUAL = {
    "bos_token": ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "<|endoftext|>"),
    "eos_token": ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", *ENDS),
    "unk_token": ("<unk>",),
    "pad_token": ("<pad>", "<|finetune_right_pad_id|>", "<|endoftext|>"),
}

# Special tokens of the published rank files, by the number of ranks in the file
# (github.com/openai/tiktoken, tiktoken_ext/openai_public.py).
TIKTOKEN_SPECIALS: dict[int, dict[str, int]] = {
    50256: {"<|endoftext|>": 50256},
    50280: {"<|endoftext|>": 50256},
    100256: {
        "<|endoftext|>": 100257,
        "<|fim_prefix|>": 100258,
        "<|fim_middle|>": 100259,
        "<|fim_suffix|>": 100260,
        "<|endofprompt|>": 100276,
    },
    199998: {"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
}
TIKTOKEN_SPLITS = {50256: "gpt2", 50280: "gpt2", 100256: "gpt4", 199998: "o200k"}


def from_tokenizer_json(source: str, config: Config | None = None, template: str = "") -> dict[str, bytes]:
    """A `tokenizer.json`, kept as it is.

    Args:
        source: its text.
        config: the `tokenizer_config.json` beside it, if there is one.
        template: the chat template; what `config` holds where left out.

    Raises:
        InputError: it is damaged, its ids stand for no bytes, or no token ends a document.
    """
    config = config or {}
    try:
        fast = FastTokenizer.from_str(source)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise InputError(f"not a tokenizer.json: {error}", hint="give the file as transformers writes it") from None
    special = [token.content for _, token in sorted(fast.get_added_tokens_decoder().items()) if token.special]
    if _made_special(fast, named := _named(config, special), special):
        source = fast.to_str(pretty=True)
        special = [token.content for _, token in sorted(fast.get_added_tokens_decoder().items()) if token.special]
    return {FAST_FILE: source.encode(), **described_files(named, tuple(special), template or _template(config))}


def from_sentencepiece(model: bytes, config: Config | None = None, template: str = "") -> dict[str, bytes]:
    """A SentencePiece `.model`, kept as it is, with the `tokenizer.json` that goes with it.

    Raises:
        InputError: it is damaged, a word model, or no token ends a document.
    """
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        fast = foreign_fast(model)
    except (RuntimeError, ValueError, IndexError) as error:
        raise InputError(f"not a SentencePiece model: {error}", hint="give the .model file") from None
    ids = {
        "bos_token": processor.bos_id(),
        "eos_token": processor.eos_id(),
        "unk_token": processor.unk_id(),
        "pad_token": processor.pad_id(),
    }
    told = {role: processor.id_to_piece(index) for role, index in ids.items() if index >= 0}
    size = processor.get_piece_size()
    special = [processor.id_to_piece(i) for i in range(size) if processor.is_control(i) or processor.is_unknown(i)]
    own = {role: name for role in ROLES if (name := name_of((config or {}).get(role))) in special}
    named = _named({**told, **own}, special)
    if "bos_token" in named:
        begun_with(fast, named["bos_token"])
    files = described_files(named, tuple(special), template or _template(config or {}))
    return {MODEL_FILE: model, FAST_FILE: fast.to_str(pretty=True).encode(), **files}


def from_tiktoken(
    content: bytes, *, split: str = "", special: Mapping[str, int] | None = None, template: str = ""
) -> dict[str, bytes]:
    """A tiktoken ranks file: lines of a token in base64 and its rank.

    Args:
        content: the file.
        split: gpt2, gpt4, qwen2 or o200k: how text is cut, which the file does not say; known for OpenAI's own.
        special: special tokens and their ids, which the file does not say either; `<|endoftext|>` after the last
            rank where neither is known.
        template: the chat template.

    Raises:
        InputError: a line is damaged, or a byte has no rank.
    """
    ranks = _ranks(content)
    given = dict(special or TIKTOKEN_SPECIALS.get(len(ranks)) or {"<|endoftext|>": max(ranks.values()) + 1})
    texts = {spelled(token): rank for token, rank in ranks.items()}
    size = max([*ranks.values(), *given.values()]) + 1
    taken = {*ranks.values(), *given.values()}
    unused = {f"<|unused_{index}|>": index for index in range(size) if index not in taken}
    given |= unused
    if len(given) - len(unused) + len(ranks) != len(taken):
        raise InputError("two tokens have one id", hint="special tokens need ids that no rank has")
    merges = list(merges_of({text: -float(rank) for text, rank in texts.items()}))
    style = split or TIKTOKEN_SPLITS.get(len(ranks), "gpt4")
    fast = byte_bpe({**texts, **given}, merges, cut(style, digits=False), whole_words=True)
    names = sorted(given, key=lambda text: given[text])
    fast.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in names])
    return {
        FAST_FILE: fast.to_str(pretty=True).encode(),
        **described_files(_named({}, names), tuple(names), template),
    }


def is_tiktoken(content: bytes) -> bool:
    """Whether a file looks like tiktoken ranks; Llama 3 calls such a one `tokenizer.model`."""
    token, _, rank = content[: content.find(b"\n") if b"\n" in content[:4096] else 4096].strip().partition(b" ")
    try:
        return rank.isdigit() and bool(base64.b64decode(token, validate=True))
    except binascii.Error:
        return False


def _ranks(content: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        token, _, rank = line.strip().partition(b" ")
        try:
            decoded, value = base64.b64decode(token, validate=True), int(rank)
        except ValueError:
            decoded, value = b"", -1
        if not decoded or value < 0 or decoded in ranks:
            raise InputError(f"line {number} is no token in base64 with its rank", hint="give a tiktoken ranks file")
        ranks[decoded] = value
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise InputError(f"the ranks lack the byte 0x{missing[0]:02X}", hint="the file is cut, or of another kind")
    return ranks


def _named(config: Config, special: list[str]) -> dict[str, str]:
    """Texts of BOS, EOS, unknown and padding: as told, else by their usual names where nothing is told."""
    told = {role: name for role in ROLES if (name := name_of(config.get(role)))}
    if not told:
        told = {
            role: found
            for role, names in USUAL.items()
            if (found := next((name for name in names if name in special), ""))
        }
    if "eos_token" not in told:
        raise InputError(
            "the tokenizer does not say which token ends a document",
            hint="put tokenizer_config.json with an eos_token beside it",
        )
    return told


def _made_special(fast: FastTokenizer, named: dict[str, str], special: list[str]) -> bool:
    """Make what `named` names a special token where the file does not; whether anything changed."""
    missing = [name for name in dict.fromkeys(named.values()) if name not in special]
    absent = [name for name in missing if fast.token_to_id(name) is None]
    if absent:
        fault = f"tokenizer_config.json names {absent[0]}, which the vocabulary lacks"
        raise InputError(fault, hint="mend either file")
    fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in missing])
    return bool(missing)


def _template(config: Config) -> str:
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next((one.get("template") for one in template if one.get("name") == "default"), "")
    return template if isinstance(template, str) else ""


def parsed(content: bytes, name: str) -> dict[str, Any]:
    """A JSON object; an `InputError` names the file where it is none."""
    try:
        value = json.loads(content)
    except ValueError as error:
        raise InputError(f"{name} is not JSON: {error}", hint="copy the file again") from None
    if not isinstance(value, dict):
        raise InputError(f"{name} holds no object", hint="give the file as transformers writes it")
    return value
