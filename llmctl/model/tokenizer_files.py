"""The tokenizer that comes with a model: its files, from one folder to another, and what a checkpoint says of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmctl.config.errors import InputError
from llmctl.config.tokens import ImportTokenizerConfig
from llmctl.pipeline.job import Product, Progress
from llmctl.store.files import explained, publish_bytes, sha256_file
from llmctl.store.manifest import sha256_of
from llmctl.tokens.engines import SentencePieceEngine
from llmctl.tokens.importing import product, tokenizer_files
from llmctl.tokens.tokenizer import FAST_FILE, MODEL_FILE, TOKENIZER_FILES, Tokenizer

# What transformers reads beside the files of ours.
OTHERS = ("added_tokens.json", "vocab.json", "merges.txt", "chat_template.json")
TOKENIZER_PARTS = (*TOKENIZER_FILES, *OTHERS)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of a checkpoint's tokenizer."""
    with explained(str(source)):
        write_tokenizer(
            {name: (source / name).read_bytes() for name in TOKENIZER_PARTS if (source / name).is_file()}, target
        )


def write_tokenizer(files: Mapping[str, bytes], target: Path) -> None:
    """Write files by name."""
    for name, content in files.items():
        publish_bytes(target / name, content)


def keep_tokenizer(source: Path, config: ImportTokenizerConfig, target: Path, progress: Progress) -> None:
    """Import the tokenizer of a model's folder; nothing where it has none that can be used here, which is told.

    Files in our own form, an exported checkpoint's, are copied as they are.
    """
    if not any((source / name).is_file() for name in (FAST_FILE, MODEL_FILE)) and not [*source.glob("*.tiktoken")]:
        return
    if _is_ours(source):
        copy_tokenizer(source, target)
        return
    try:
        write_tokenizer(tokenizer_files(source, config), target)
    except InputError as error:
        progress.note(f"its tokenizer is left out: {error.one_line}")


def _is_ours(source: Path) -> bool:
    """Whether it is one that was trained here, in both its forms."""
    if not all((source / name).is_file() for name in (FAST_FILE, MODEL_FILE)):
        return False
    try:
        return SentencePieceEngine((source / MODEL_FILE).read_bytes()).is_ours
    except RuntimeError:  # Llama 3 has ranks by that name
        return False


def tokenizer_product(source: Path, config: ImportTokenizerConfig, out: Path) -> Product:
    """Import a tokenizer alone.

    Raises:
        InputError: it is damaged, or of a kind that cannot be used here.
    """
    write_tokenizer(tokenizer_files(source, config), out)
    return product(Tokenizer.open(out), source.name)


def tokenizer_facts(directory: Path, vocab_size: int, progress: Progress) -> dict[str, Any]:
    """What a manifest says of the tokenizer in a checkpoint: `tokenizer` (digest) and `chat`.

    Raises:
        InputError: it has more ids than the model.
    """
    parts = {name: sha256_file(directory / name) for name in TOKENIZER_PARTS if (directory / name).is_file()}
    if not parts:
        progress.note("there is no tokenizer: the checkpoint takes ids alone")
        return {}
    tokenizer = Tokenizer.open(directory)
    if tokenizer.vocab_size > vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model {vocab_size}",
            hint="the two are not of one checkpoint",
        )
    if tokenizer.changes:
        progress.note(f"the tokenizer is not exact: {'; '.join(tokenizer.changes)}")
    return {"tokenizer": sha256_of(parts), "chat": bool(tokenizer.chat_template)}
