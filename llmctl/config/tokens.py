"""Configuration of the tokenizer, tokenize and pack stages."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from llmctl.config.base import Config, execution
from llmctl.config.heldout import HELDOUT_FRACTION

SPECIAL_IDS = 6  # <unk> <s> </s> <pad> <|im_start|> <|im_end|>
BYTE_IDS = 256
LONGEST_ROW = 1 << 24


class TokenizerConfig(Config):
    """How a SentencePiece tokenizer is trained."""

    vocab_size: int = Field(8192, ge=16, le=1_000_000, description="Ids in the vocabulary, the special ones included.")
    model: Literal["bpe", "unigram"] = Field(
        "bpe",
        description="bpe: pieces by merges (Sennrich et al., 2016); unigram: by their likelihood (Kudo, 2018).",
    )
    byte_fallback: bool = Field(
        default=True,
        description="Spell characters outside the vocabulary in bytes, so that every text comes back exactly; "
        "without it they become <unk>.",
    )
    split_digits: bool = Field(default=True, description="Make every digit a piece of its own.")
    max_piece_chars: int = Field(16, ge=1, le=512, description="Longest piece, in characters.")
    character_coverage: float = Field(
        0.9995,
        ge=0.9,
        le=1.0,
        description="Share of the characters in the text whose kinds get a piece of their own.",
    )
    max_training_bytes: int = Field(
        100_000_000,
        ge=1_000,
        description="Train on a sample of about this many bytes of text, chosen by hash, where there is more.",
    )

    @model_validator(mode="after")
    def _has_room_for_text(self) -> Self:
        least = SPECIAL_IDS + (BYTE_IDS if self.byte_fallback else 0) + 2
        if self.vocab_size < least:
            raise ValueError(f"vocab_size must be at least {least}: {least - 2} ids are special or bytes")
        return self


class TokenizeConfig(Config):
    """How documents are encoded."""

    train: TokenizerConfig = Field(
        default_factory=lambda: TokenizerConfig.model_validate({}),
        description="The tokenizer to train where none is given as an input.",
    )
    shard_tokens: int = Field(
        100_000_000,
        ge=1,
        le=1 << 40,
        description="Close a shard with the document that brings it to this many tokens.",
    )
    workers: int = execution(2, ge=1, le=512, description="Threads that encode.")


class PackConfig(Config):
    """How documents become rows."""

    seq_len: int = Field(1024, description="Tokens in a row.")
    heldout_fraction: float = Field(
        HELDOUT_FRACTION,
        ge=0.0,
        lt=1.0,
        description="Share of the documents held out of training, chosen by the hash of their ids.",
    )

    @field_validator("seq_len")
    @classmethod
    def _has_a_target(cls, value: int) -> int:
        if not 2 <= value <= LONGEST_ROW:
            raise ValueError(f"a row must hold 2 to {LONGEST_ROW} tokens: each is predicted from the ones before it")
        return value
