"""Configuration of the stage `dedup`."""

from __future__ import annotations

from pydantic import Field

from llmctl.config.engine import EngineConfig


class DedupConfig(EngineConfig):
    """Which documents count as the same."""

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
    permutations: int = Field(default=128, ge=16, le=1024, description="hash functions of a MinHash signature")
    ngram_words: int = Field(default=5, ge=1, le=100, description="words per shingle")
    seed: int = Field(default=1, ge=0, le=2**32 - 1, description="seed of the hash functions")
