"""A real tokenizer and a random model on disk, made in a second: what serve and eval are tested on."""

import random
from pathlib import Path

import sentencepiece

from llmctl.config.model import ModelConfig
from llmctl.config.tokens import TokenizerConfig
from llmctl.model import huggingface
from llmctl.model.transformer import Transformer
from llmctl.tokens.huggingface import companion_files
from llmctl.tokens.train import sentences_of, train

WORDS = (
    "the a of in returns list string number file path value key name sorted open close read write "
    "join split map item object error index count true false café naïve — ünï 漢字"
).split()


def text(seed: int, words: int = 400) -> str:
    """Pseudo-random prose over a small lexicon."""
    chosen = random.Random(seed)
    return " ".join(chosen.choice(WORDS) for _ in range(words)) + "."


def write_tokenizer(directory: Path, vocab_size: int = 384) -> Path:
    """Train a SentencePiece model on generated text and write every tokenizer file."""
    config = TokenizerConfig.model_validate({"vocab_size": vocab_size})
    sentences = (part for seed in range(40) for part in sentences_of(text(seed)))
    model = train(sentences, config)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(model)
    for name, content in companion_files(sentencepiece.SentencePieceProcessor(model_proto=model)).items():
        (directory / name).write_bytes(content)
    return directory


def write_checkpoint(directory: Path, *, seed: int = 0, context: int = 256) -> Path:
    """A complete Hugging Face directory with random weights."""
    tokenizer = write_tokenizer(directory / "tokenizer")
    vocab_size = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model")).get_piece_size()
    model = Transformer(ModelConfig.model_validate({"name": "nano", "context": context}), vocab_size)
    model.init_weights(seed)
    huggingface.save(model, directory / "checkpoint", tokenizer)
    return directory / "checkpoint"
