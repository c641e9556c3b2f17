"""A tokenizer as the metadata of a GGUF file, which is where llama.cpp looks for it.

Keys and token types: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "Tokenizer".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import sentencepiece

from llmctl.config.errors import InputError, UsageError
from llmctl.tokens.tokenizer import CONFIG_FILE, FAST_FILE, MODEL_FILE, TEMPLATE_FILE

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
ROOT = "tokenizer.ggml."
NAMED: Final = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CUTS: Final = {
    (): "gpt-2",
    ("digits",): "smollm",
    (LETTERS + r"\p{N}{1,3}" + REST,): "llama-bpe",
    (LETTERS + r"\p{N}" + REST,): "qwen2",
}
"""What llama.cpp calls the ways of cutting text before byte-level BPE; the empty one is GPT-2's own."""


def tokenizer_metadata(directory: Path, vocab_size: int, stops: Sequence[int]) -> dict[str, Any]:
    """The metadata of the tokenizer in a checkpoint.

    Args:
        directory: of the checkpoint.
        vocab_size: rows of the model's embedding; ids beyond the tokenizer's are marked as unused.
        stops: ids that end an answer, the one that ends a document first.

    Raises:
        UsageError: llama.cpp has no tokenizer of its kind.
        InputError: its files are missing or damaged.
    """
    try:
        described = _object(directory / FAST_FILE)
        config = _object(directory / CONFIG_FILE)
        if (directory / MODEL_FILE).is_file():
            metadata = _from_sentencepiece(directory / MODEL_FILE, described)
        elif described:
            metadata = _from_byte_level(described)
        else:
            raise UsageError(
                f"{directory} holds no tokenizer, and llama.cpp opens no model without one",
                hint="export with --format hf",
            )
        metadata |= _special(described, config, metadata[f"{ROOT}tokens"], stops)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"the tokenizer in {directory} is damaged: {error!r}", hint="make it again") from None
    _pad(metadata, vocab_size)
    template = config.get("chat_template")
    if (directory / TEMPLATE_FILE).is_file():
        template = (directory / TEMPLATE_FILE).read_text(encoding="utf-8")
    return {**metadata, **({"tokenizer.chat_template": template} if isinstance(template, str) and template else {})}


def _object(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is no such file."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(found, dict):
        raise TypeError(f"{path.name} holds no object")
    return found


def _from_sentencepiece(path: Path, described: Mapping[str, Any]) -> dict[str, Any]:
    """Pieces and scores: llama.cpp merges by score as SentencePiece does."""
    if described and described["model"]["type"] != "BPE":
        raise UsageError(
            f"llama.cpp runs a {described['model']['type']} tokenizer for other models than this",
            hint="export with --format hf",
        )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = range(processor.get_piece_size())
    kinds = [
        UNKNOWN
        if processor.is_unknown(index)
        else CONTROL
        if processor.is_control(index)
        else BYTE
        if processor.is_byte(index)
        else UNUSED
        if processor.is_unused(index)
        else NORMAL
        for index in ids
    ]
    return {
        f"{ROOT}model": "llama",
        f"{ROOT}pre": "default",
        f"{ROOT}tokens": [processor.id_to_piece(index) for index in ids],
        f"{ROOT}scores": [processor.get_score(index) for index in ids],
        f"{ROOT}token_type": kinds,
        f"{ROOT}add_space_prefix": str(processor.encode("a", out_type=str)[0]).startswith("\u2581"),
        f"{ROOT}remove_extra_whitespaces": False,
    }


def _from_byte_level(described: Mapping[str, Any]) -> dict[str, Any]:
    """Vocabulary and merges."""
    model = described["model"]
    cut = tuple(_cuts(described.get("pre_tokenizer")))
    if model["type"] != "BPE" or cut not in CUTS:
        raise UsageError(
            "llama.cpp has no name for how this tokenizer cuts text before it merges bytes",
            hint="export with --format hf",
        )
    vocab: dict[str, int] = dict(model["vocab"])
    kinds = dict.fromkeys(vocab.values(), NORMAL)
    for token in described.get("added_tokens", ()):
        vocab[token["content"]] = token["id"]
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    texts = {index: text for text, index in vocab.items()}
    size = max(texts) + 1
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return {
        f"{ROOT}model": "gpt2",
        f"{ROOT}pre": CUTS[cut],
        f"{ROOT}tokens": [texts.get(index, f"[PAD{index}]") for index in range(size)],
        f"{ROOT}token_type": [kinds.get(index, UNUSED) for index in range(size)],
        f"{ROOT}merges": merges,
        f"{ROOT}add_space_prefix": False,
    }


def _cuts(part: Any) -> Iterator[str]:
    """The ways in which a pre-tokenizer cuts text, in order; nothing for GPT-2's own pattern."""
    kind = part["type"]
    if kind == "Sequence":
        for member in part["pretokenizers"]:
            yield from _cuts(member)
    elif kind == "Digits" and part["individual_digits"]:
        yield "digits"
    elif kind == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
        yield part["pattern"]["Regex"]
    elif kind != "ByteLevel" or part["add_prefix_space"]:
        yield f"{kind}, which llama.cpp does not have"


def _special(
    described: Mapping[str, Any], config: Mapping[str, Any], tokens: Sequence[str], stops: Sequence[int]
) -> dict[str, Any]:
    """Ids with a task, and whether BOS begins a text."""
    ids = {text: index for index, text in enumerate(tokens)}
    found: dict[str, Any] = {}
    for role, name in NAMED.items():
        token = config.get(role)
        text = token["content"] if isinstance(token, dict) else token
        if text in ids:
            found[f"{ROOT}{name}_token_id"] = ids[text]
    if stops:
        found[f"{ROOT}eos_token_id"] = stops[0]
    if len(stops) > 1:
        found[f"{ROOT}eot_token_id"] = stops[1]
    found[f"{ROOT}add_bos_token"] = _begins_with_bos(described.get("post_processor"), config)
    return found


def _begins_with_bos(post: Any, config: Mapping[str, Any]) -> bool:
    """Whether other tools put BOS before a text that they encode with this tokenizer."""
    for part in (post or {}).get("processors", [post] if post else []):
        if part["type"] == "TemplateProcessing" and "SpecialToken" in part["single"][0]:
            return True
    return bool(config.get("add_bos_token", False))


def _pad(metadata: dict[str, Any], vocab_size: int) -> None:
    """Ids of the model that the tokenizer never gives."""
    tokens = metadata[f"{ROOT}tokens"]
    if len(tokens) > vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokens)} ids, the model {vocab_size}", hint="the two are not of one checkpoint"
        )
    beyond = range(len(tokens), vocab_size)
    tokens += [f"[PAD{index}]" for index in beyond]
    metadata[f"{ROOT}token_type"] += [UNUSED] * len(beyond)
    if f"{ROOT}scores" in metadata:
        metadata[f"{ROOT}scores"] += [-10_000.0] * len(beyond)
