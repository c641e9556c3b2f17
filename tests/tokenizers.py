"""Small trained tokenizers on disk, for the tests of every layer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from llmctl.config.tokens import TokenizerConfig
from llmctl.tokens.train import trained_files


def write_tokenizer(directory: Path, texts: Iterable[str], config: TokenizerConfig) -> Path:
    """Train a tokenizer on `texts` and write its files into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in trained_files(iter(texts), config).items():
        (directory / name).write_bytes(content)
    return directory
