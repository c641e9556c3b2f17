"""Configuration of low-rank adapters."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from llmctl.config.base import Config

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraConfig(Config):
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): W x + s B A x with W frozen."""

    rank: int = Field(16, ge=1, le=4096, description="Rows of A and columns of B.")
    alpha: float = Field(32.0, gt=0, le=65536, description="s is alpha / rank, or alpha / sqrt(rank) with rslora.")
    targets: tuple[str, ...] = Field(
        LINEAR, min_length=1, description="Matrices of each layer that get an adapter, by the ends of their names."
    )
    rslora: bool = Field(default=False, description="Scale by the root of the rank (arXiv:2312.03732).")
    dora: bool = Field(
        default=False, description="Learn the length of each row of W by itself, and its direction by B A (2402.09353)."
    )
    init: Literal["zero", "pissa"] = Field(
        "zero",
        description="zero: A random, B zero. pissa: A and B are the largest singular vectors of W, and what is frozen "
        "is the rest (arXiv:2404.02948); the adapter that is published has twice the rank and fits W itself.",
    )
    base: Literal["full", "nf4"] = Field(
        "full",
        description="How the frozen matrices are kept: full, in fp32; nf4, in 4 bits (QLoRA, arXiv:2305.14314). "
        "llmctl merge then merges into what the 4 bits stand for.",
    )
    b_lr_ratio: float = Field(
        1.0, ge=1, le=1000, description="Learning rate of B over that of A (LoRA+, arXiv:2402.12354, advises 16)."
    )

    @property
    def scale(self) -> float:
        """S."""
        return float(self.alpha / (self.rank**0.5 if self.rslora else self.rank))

    @model_validator(mode="after")
    def _one_at_a_time(self) -> LoraConfig:
        if self.dora and self.init == "pissa":
            raise ValueError("dora learns lengths of W's rows, and pissa freezes another W: take one of them")
        if self.base == "nf4" and self.init == "pissa":
            raise ValueError("pissa freezes what is left of W, and 4 bits of that are no 4 bits of W: take one of them")
        return self


def kind_of(config: Any) -> str:
    """What a fine-tuning stage makes."""
    return "checkpoint" if config.lora is None else "adapter"
