"""The tokenizer that comes with a model: its files, from one folder to another, and what a checkpoint says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmctl.config.errors import InputError
from llmctl.pipeline.job import Progress
from llmctl.store.files import explained, publish_bytes, sha256_file
from llmctl.store.manifest import sha256_of
from llmctl.tokens.tokenizer import Tokenizer

TOKENIZER_PARTS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy every file of a tokenizer that is there; none is read as code."""
    with explained(str(source)):
        for name in TOKENIZER_PARTS:
            if (source / name).is_file():
                publish_bytes(target / name, (source / name).read_bytes())


def tokenizer_facts(directory: Path, vocab_size: int, progress: Progress) -> dict[str, Any]:
    """What a manifest says of the tokenizer in a checkpoint: `tokenizer` (digest) and `chat`.

    Raises:
        InputError: it has more ids than the model.
    """
    parts = {name: sha256_file(directory / name) for name in TOKENIZER_PARTS if (directory / name).is_file()}
    if not parts:
        progress.note("the source holds no tokenizer: the checkpoint takes ids alone")
        return {}
    digest = {"tokenizer": sha256_of(parts)}
    try:
        tokenizer = Tokenizer.open(directory)
    except InputError as error:
        progress.note(f"the checkpoint takes ids alone: {error.one_line}")
        return digest
    if tokenizer.vocab_size > vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model {vocab_size}",
            hint="the two are not of one checkpoint",
        )
    return {**digest, "chat": bool(tokenizer.chat_template)}
