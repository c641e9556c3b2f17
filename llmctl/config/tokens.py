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
    """How a tokenizer is trained."""

    vocab_size: int = Field(8192, ge=16, le=1_000_000, description="Ids in the vocabulary, the special ones included.")
    model: Literal["bpe", "unigram", "char", "word", "byte-bpe"] = Field(
        "bpe",
        description="bpe: pieces by merges (Sennrich et al., 2016); unigram: by their likelihood (Kudo, 2018); "
        "char and word: the most frequent of them, at most vocab_size; all four by SentencePiece. "
        "byte-bpe: merges of bytes (Radford et al., 2019), by the tokenizers library.",
    )
    split: Literal["gpt2", "gpt4"] = Field(
        "gpt4",
        description="Where byte-bpe cuts text before it merges: as GPT-2 does, or as GPT-4 does (words with the sign "
        "before them, numbers of three digits, lines).",
    )
    byte_fallback: bool = Field(
        default=True,
        description="Spell characters outside the vocabulary in bytes, so that every text comes back exactly; "
        "without it they become <unk>.",
    )
    split_digits: bool = Field(default=True, description="Make every digit a piece of its own.")
    max_piece_chars: int = Field(16, ge=1, le=512, description="Longest piece, in characters; byte-bpe: in bytes.")
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
        if self.model in ("word", "byte-bpe") and not self.byte_fallback:
            raise ValueError(f"byte_fallback cannot be off: {self.model} spells what it does not know in bytes")
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
    workers: int = execution(0, ge=0, le=512, description="Threads that encode; 0: one for each core.")


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


class ImportTokenizerConfig(Config):
    """What a tokenizer's file does not say."""

    split: Literal["", "gpt2", "gpt4", "qwen2", "o200k"] = Field(
        "",
        description="How text is cut before merges, for tiktoken ranks that are not OpenAI's own; gpt4 where left out.",
    )
    special: dict[str, int] | None = Field(
        None, description="Special tokens and their ids, for tiktoken ranks; OpenAI's own are known."
    )
    chat_template: str = Field("", description="The chat template, in place of the one beside the file.")
