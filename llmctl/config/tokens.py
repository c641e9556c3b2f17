"""Configuration of the tokenizer, tokenize and pack stages."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from llmctl.config.base import Config, execution
from llmctl.config.heldout import HELDOUT_FRACTION

SPECIAL_IDS = 6  # <unk> <s> </s> <pad> <|im_start|> <|im_end|>
BYTE_IDS = 256
LONGEST_ROW = 1 << 24
LEAST_INFILL_ROW = 8
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]


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


class FromMegatronConfig(Config):
    """Which datasets of Megatron become token shards."""

    prefixes: tuple[str, ...] = execution(
        (), description="PREFIX of PREFIX.bin and PREFIX.idx, one or more; their bytes count, not where they lie."
    )
    shard_tokens: int = Field(
        100_000_000,
        ge=1,
        le=1 << 40,
        description="Close a shard with the document that brings it to this many tokens.",
    )


class StageConfig(Config):
    """A stretch of training with a mixture of its own."""

    tokens: int | None = Field(
        None, ge=1, description="Length of the stage in training tokens; the last one goes on to the end of training."
    )
    weights: dict[str, Share] = Field(description="Share of the tokens of each source by its name, in any scale.")

    @field_validator("weights")
    @classmethod
    def _takes_something(cls, value: dict[str, float]) -> dict[str, float]:
        if not any(value.values()):
            raise ValueError("one source at least must have a weight above 0")
        return value


class FimConfig(Config):
    """Fill-in-the-middle: documents rearranged so that the model learns to write what stands between two texts."""

    rate: float = Field(0.0, ge=0, le=1, description="Share of the training documents that are rearranged, by id.")
    spm_rate: float = Field(
        0.5, ge=0, le=1, description="Share of those in which the suffix comes first (SPM); else the prefix does (PSM)."
    )
    ids: tuple[int, int, int] | None = Field(
        None, description="Ids that mark prefix, suffix and middle; the tokenizer's own where left out."
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of which documents, and of where they are cut.")


class PackConfig(Config):
    """How documents become rows."""

    seq_len: int = Field(1024, description="Tokens in a row.")
    weights: dict[str, Weight] = Field(
        default={},
        description="Share of the training tokens of each source by its name, in any scale; a source that runs out "
        "is shuffled again. Where left out, sources are taken in proportion to their tokens.",
    )
    stages: tuple[StageConfig, ...] = Field(
        default=(), description="A curriculum: mixtures that follow one another, instead of `weights`."
    )
    heldout_fraction: float = Field(
        HELDOUT_FRACTION,
        ge=0.0,
        lt=1.0,
        description="Share of the documents held out of training, chosen by the hash of their ids.",
    )

    fim: FimConfig = Field(
        default_factory=lambda: FimConfig.model_validate({}), description="Fill-in-the-middle; off where rate is 0."
    )

    @field_validator("seq_len")
    @classmethod
    def _has_a_target(cls, value: int) -> int:
        if not 2 <= value <= LONGEST_ROW:
            raise ValueError(f"a row must hold 2 to {LONGEST_ROW} tokens: each is predicted from the ones before it")
        return value

    @model_validator(mode="after")
    def _has_room_for_marks(self) -> Self:
        if self.fim.rate and self.seq_len < LEAST_INFILL_ROW:
            raise ValueError(f"fim needs rows of {LEAST_INFILL_ROW} tokens at least: three of them are marks")
        return self

    @model_validator(mode="after")
    def _one_mixture_at_a_time(self) -> Self:
        if self.weights and self.stages:
            raise ValueError("give weights, or stages with weights of their own")
        if any(stage.tokens is None for stage in self.stages[:-1]):
            raise ValueError("every stage but the last needs tokens: how long it is")
        if self.stages and self.stages[-1].tokens is not None:
            raise ValueError("the last stage goes on to the end of training: leave out its tokens")
        return self


class ImportTokenizerConfig(Config):
    """What a tokenizer's file does not say."""

    split: Literal["", "gpt2", "gpt4", "qwen2", "o200k"] = Field(
        default="",
        description="How text is cut before merges, for tiktoken ranks that are not OpenAI's own; gpt4 where left out.",
    )
    special: dict[str, int] | None = Field(
        default=None, description="Special tokens and their ids, for tiktoken ranks; OpenAI's own are known."
    )
    chat_template: str = Field(default="", description="The chat template, in place of the one beside the file.")
