"""Configuration of `llmctl stats`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmctl.config.engine import EngineConfig

Length = Annotated[int, Field(ge=1, le=10)]


class StatsConfig(EngineConfig):
    """What is counted, and how much of it is shown."""

    top: int = Field(
        default=10, ge=1, le=10_000, description="how many languages, domains, n-grams and so on are listed"
    )
    ngram_words: tuple[Length, ...] = Field(
        default=(1, 2, 3), max_length=5, description="lengths of the word n-grams that are counted, 1 to 10 words"
    )
    ngrams_kept: int = Field(
        default=1 << 17,
        ge=100,
        le=1 << 24,
        description="different n-grams of one length held in memory; counts are exact up to so many, beyond that "
        "the rare ones give way and the largest possible error is stated",
    )
