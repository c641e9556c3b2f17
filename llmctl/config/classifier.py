"""Configuration of the stage `classifier`."""

from __future__ import annotations

from pydantic import Field

from llmctl.config.base import Config


class ClassifierConfig(Config):
    """How a fastText quality classifier is trained. One thread: the same documents and seed give the same model."""

    dimensions: int = Field(default=50, ge=2, le=1000, description="width of the word vectors")
    ngram_words: int = Field(default=2, ge=1, le=5, description="longest word n-gram that counts as a feature")
    buckets: int = Field(default=100_000, ge=1000, le=10_000_000, description="hash slots of the n-grams")
    epochs: int = Field(default=5, ge=1, le=1000, description="times every document is seen")
    lr: float = Field(default=0.1, gt=0, le=1, description="learning rate at the start; it falls linearly to 0")
    min_count: int = Field(default=1, ge=1, description="rarer words are no features of their own")
    max_characters: int = Field(default=10_000, ge=100, description="of every document, as much from its start")
    heldout_fraction: float = Field(
        default=0.1, ge=0, le=0.5, description="share of the documents (by id) that are not trained on but measured"
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="seed of the first weights")
