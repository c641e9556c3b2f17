"""Configuration of the stage `mix`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llmctl.config.engine import EngineConfig
from llmctl.config.heldout import HELDOUT_FRACTION

Unit = Literal["documents", "tokens", "bytes"]
UNITS: tuple[Unit, ...] = ("documents", "tokens", "bytes")
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class MixConfig(EngineConfig):
    """How much of each source goes into the mixture, in which order, and what is held out."""

    weights: dict[str, Weight] = Field(
        default={},
        description="share of each source by its name, in any scale (0.7 and 0.3, or 7 and 3); where left out, "
        "the sources' sizes to the power 1/temperature",
    )
    temperature: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="without weights: 1 mixes in proportion to size, larger values favour the smaller sources",
    )
    by: Unit = Field(default="tokens", description="unit of the weights and of size: documents, tokens or bytes")
    documents: int | None = Field(default=None, ge=1, description="total size of the training split, in documents")
    tokens: int | None = Field(default=None, ge=1, description="total size of the training split, in tokens")
    bytes: int | None = Field(default=None, ge=1, description="total size of the training split, in UTF-8 bytes")
    max_epochs: float = Field(
        default=4.0,
        ge=1,
        le=1000,
        description="how often a source may be used where a total asks for more than it holds; without a total "
        "nothing is repeated (Muennighoff et al. 2023: up to 4 epochs are nearly as good as fresh text)",
    )
    bytes_per_token: float = Field(
        default=4.0, gt=0, le=1000, description="how tokens are estimated from bytes where no tokenizer is given"
    )
    heldout_fraction: float = Field(
        default=HELDOUT_FRACTION,
        ge=0,
        lt=1,
        description="share of the documents held out, by the hash of their ids; give pack the same number",
    )
    near_threshold: float = Field(
        default=0.8,
        ge=0.3,
        le=1.0,
        description="a training document with this Jaccard similarity to a held-out one is dropped",
    )
    ngram_words: int = Field(default=5, ge=1, le=100, description="words per shingle of that similarity")
    seed: int = Field(default=1, ge=0, le=2**32 - 1, description="seed of the choice and the order of documents")

    @property
    def total(self) -> tuple[Unit, int] | None:
        """The unit and the size of the training split, where one is asked for."""
        sizes = {"documents": self.documents, "tokens": self.tokens, "bytes": self.bytes}
        return next(((unit, size) for unit in UNITS if (size := sizes[unit]) is not None), None)

    @model_validator(mode="after")
    def _no_contradiction(self) -> Self:
        if sum(size is not None for size in (self.documents, self.tokens, self.bytes)) > 1:
            raise ValueError("give one total: documents, tokens or bytes")
        if self.weights and self.temperature != 1.0:
            raise ValueError("temperature makes weights from sizes: give weights or temperature, not both")
        return self
