"""Configuration of the stage `dedup`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from llmctl.config.engine import EngineConfig

Unit = Literal["document", "paragraph", "line"]


class DedupConfig(EngineConfig):
    """Which documents count as the same, and which of them stays."""

    unit: Unit = Field(
        default="document",
        description="paragraph or line: also remove, before documents are compared, every paragraph (line) that stood "
        "earlier in the corpus, equal up to letter case and white space",
    )
    exact: bool = Field(default=True, description="remove documents equal up to letter case and white space")
    near: bool = Field(
        default=True, description="remove near duplicates, found by MinHash and verified by exact Jaccard"
    )
    threshold: float = Field(
        default=0.8,
        ge=0.3,
        le=1.0,
        description="smallest Jaccard similarity of word n-gram sets that counts as duplicate",
    )
    permutations: int = Field(default=160, ge=16, le=1024, description="hash functions of a MinHash signature")
    ngram_words: int = Field(default=5, ge=1, le=100, description="words per shingle")
    keep: str = Field(
        default="longest",
        min_length=1,
        description="which of several duplicates stays: longest, first, or the name of a numeric column, whose highest "
        "value stays; then the longest, then the smallest id",
    )
    index: bool = Field(
        default=False,
        description="also write index-*.parquet, against which later crawls are deduplicated without this text",
    )
    seed: int = Field(default=1, ge=0, le=2**32 - 1, description="seed of the hash functions")

    @model_validator(mode="after")
    def _index_is_of_near_duplicates(self) -> Self:
        if self.index and not self.near:
            raise ValueError("index=true stores what near=true computes; set near=true, or leave the index out")
        return self
