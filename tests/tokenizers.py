"""Small trained tokenizers on disk, for the tests of every layer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from llmctl.config.tokens import TokenizerConfig
from llmctl.tokens.huggingface import companion_files
from llmctl.tokens.tokenizer import MODEL_FILE
from llmctl.tokens.train import sentences_of, train


def write_tokenizer(directory: Path, texts: Iterable[str], config: TokenizerConfig) -> Path:
    """Train a SentencePiece model on `texts` and write every file of a tokenizer into `directory`."""
    model = train((part for text in texts for part in sentences_of(text)), config)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MODEL_FILE).write_bytes(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for name, content in companion_files(processor, config.model).items():
        (directory / name).write_bytes(content)
    return directory
