"""Finding a tokenizer in files of others: what `llmctl import` reads of them."""

from __future__ import annotations

from pathlib import Path

from llmctl.config.errors import InputError
from llmctl.config.tokens import ImportTokenizerConfig
from llmctl.pipeline.job import Product
from llmctl.store.files import explained
from llmctl.tokens.imports import from_sentencepiece, from_tiktoken, from_tokenizer_json, is_tiktoken, parsed
from llmctl.tokens.tokenizer import CONFIG_FILE, FAST_FILE, MODEL_FILE, TEMPLATE_FILE, Tokenizer
from llmctl.tokens.train import SCHEMA

KNOWN = "known: tokenizer.json, a SentencePiece .model, a .tiktoken ranks file, or a directory that holds one"
LARGEST = 1 << 30  # bytes of one file; the largest published one has some 35 MB


def product(tokenizer: Tokenizer, source: str) -> Product:
    """The facts of an imported tokenizer."""
    return Product(
        schema=SCHEMA,
        semantic={
            "imported_from": source,
            "vocab_size": tokenizer.vocab_size,
            "special": tokenizer.special,
            "changes": list(tokenizer.changes),
        },
        totals={"vocab_size": tokenizer.vocab_size},
    )


def tokenizer_files(path: Path, config: ImportTokenizerConfig) -> dict[str, bytes]:
    """The files of a tokenizer directory, by name.

    Args:
        path: a tokenizer's file, or a directory with `tokenizer.json`, `tokenizer.model` or one `.tiktoken` file.
        config: what the file does not say.

    Raises:
        InputError: there is no such file, or it is damaged.
    """
    path = _tokenizer_in(path) if path.is_dir() else path
    content = _read(path)
    beside = path.parent / CONFIG_FILE
    told = parsed(_read(beside), CONFIG_FILE) if beside.is_file() and path != beside else {}
    template = path.parent / TEMPLATE_FILE
    chat = config.chat_template or (_text(template) if template.is_file() else "")
    if path.suffix == ".json":
        return from_tokenizer_json(_text(path), told, chat)
    if is_tiktoken(content):
        return from_tiktoken(content, split=config.split, special=config.special, template=chat)
    return from_sentencepiece(content, told, chat)


def _tokenizer_in(directory: Path) -> Path:
    candidates = [directory / FAST_FILE, directory / MODEL_FILE, *sorted(directory.glob("*.tiktoken"))]
    found = [path for path in candidates if path.is_file()]
    if not found:
        raise InputError(f"{directory} holds no tokenizer", hint=KNOWN)
    return found[0]


def _read(path: Path) -> bytes:
    with explained(str(path)):
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} is larger than any tokenizer ({LARGEST:,} bytes)", hint=KNOWN)
        return path.read_bytes()


def _text(path: Path) -> str:
    try:
        return _read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text: {error}", hint="copy the file again") from None
