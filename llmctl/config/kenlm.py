"""Configuration of the stage `kenlm`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from llmctl.config.base import Config, execution


class KenlmConfig(Config):
    """How KenLM's `lmplz` estimates an n-gram model: modified Kneser-Ney over words and punctuation marks."""

    order: int = Field(default=5, ge=2, le=6, description="longest n-gram in words; KenLM is built for 6 at most")
    lowercase: bool = Field(default=True, description="lower-case the text; `clean --kenlm` then does the same")
    prune: tuple[int, ...] = Field(
        (),
        description="leave out n-grams seen at most so often, by order from 1; the last holds for longer ones: "
        "[0, 0, 1] keeps all single words and pairs, and longer ones seen twice",
    )
    discount_fallback: bool = Field(
        default=True,
        description="take the discounts 0.5, 1 and 1.5 for an order that has too few n-grams to estimate them, "
        "as in a small corpus; otherwise such a corpus is an error",
    )
    format: Literal["binary", "arpa"] = Field(
        default="binary",
        description="binary: a trie by KenLM's build_binary, small and mapped into memory; arpa: text, slow to load",
    )
    memory_fraction: float = execution(
        0.2, ge=0.01, le=0.95, description="share of this machine's memory that lmplz sorts in; the rest goes to disk"
    )

    @model_validator(mode="after")
    def _prune_rises(self) -> Self:
        limits = list(self.prune)
        if len(limits) > self.order or limits != sorted(limits) or any(limit < 0 for limit in limits):
            raise ValueError(f"prune {limits} must be at most {self.order} numbers from 0 that never fall")
        return self
