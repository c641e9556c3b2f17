"""Configuration of the tokenizer, tokenize and pack stages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from llmctl.config.base import Config, execution


class TokenizerConfig(Config):
    """How a SentencePiece tokenizer is trained."""

    vocab_size: int = Field(8192, ge=16, le=1_000_000, description="Ids in the vocabulary, special ones included.")
    model: Literal["bpe", "unigram"] = Field(
        "bpe", description="bpe: merges by frequency (Sennrich 2016); unigram: a language model of pieces (Kudo 2018)."
    )
    byte_fallback: bool = Field(
        default=True, description="Spell characters outside the vocabulary as bytes; without it they become <unk>."
    )
    split_digits: bool = Field(default=True, description="Make every digit a piece of its own.")
    max_piece_chars: int = Field(16, ge=1, le=512, description="Longest piece, in characters.")
    character_coverage: float = Field(
        0.9995, ge=0.9, le=1.0, description="Share of the text's characters that get a piece; the rest go to bytes."
    )
    max_training_bytes: int = Field(
        100_000_000, ge=1_000, description="Train on a sample of about this many bytes of UTF-8 where there is more."
    )


class TokenizeConfig(Config):
    """How documents are encoded."""

    train: TokenizerConfig = Field(
        default_factory=TokenizerConfig, description="The tokenizer to train where none is given as an input."
    )
    shard_tokens: int = Field(
        100_000_000, ge=1, le=2**40, description="Close a shard with the document that brings it to this many tokens."
    )
    workers: int = execution(2, ge=1, le=512, description="Threads that encode.")


class PackConfig(Config):
    """How documents become rows."""

    seq_len: int = Field(1024, description="Tokens in a row.")
    heldout_fraction: float = Field(
        0.02,
        ge=0.0,
        lt=1.0,
        description="Share of the documents held out of training, chosen by the hash of their ids.",
    )

    @field_validator("seq_len")
    @classmethod
    def _has_a_target(cls, value: int) -> int:
        if not 2 <= value <= 2**24:
            raise ValueError("a row must hold 2 to 16777216 tokens: each token is predicted from the one before it")
        return value
