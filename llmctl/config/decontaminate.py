"""Configuration of the stage `decontaminate`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from llmctl.config.base import Config
from llmctl.config.engine import EngineConfig


class OverlapConfig(Config):
    """Which words count as taken from an evaluation set."""

    ngram_words: int = Field(default=13, ge=1, le=100, description="words in a row that count as overlap")
    min_words: int = Field(
        default=8,
        ge=1,
        le=100,
        description="an evaluation text of fewer words than ngram_words, but at least so many, is looked for whole",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_words > self.ngram_words:
            raise ValueError(f"min_words {self.min_words} is above ngram_words {self.ngram_words}")
        return self


class DecontaminateConfig(OverlapConfig, EngineConfig):
    """Which overlap with an evaluation set counts, and what becomes of it."""

    min_ngrams: int = Field(
        default=1, ge=1, description="n-grams of one evaluation item from which on a document is contaminated by it"
    )
    action: Literal["drop", "remove"] = Field(
        default="drop", description="drop contaminated documents, or remove only the spans that overlap"
    )
    fields: tuple[str, ...] = Field(
        default=("prompt", "question", "text", "choices"),
        min_length=1,
        description="columns of the evaluation set that hold text, or lists of texts; those that are there are used",
    )
