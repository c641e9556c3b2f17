"""The shape of a decoder: the one configuration that every architecture is a case of."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from llmctl.config.base import Config
from llmctl.config.blocks import (
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LatentConfig,
    NormConfig,
    PredictionConfig,
    RopeScaling,
    ScaleConfig,
)
from llmctl.config.presets import PRESETS

CUSTOM: Final = "custom"
LLAMA_FIELDS: Final = (
    "width",
    "layers",
    "heads",
    "kv_heads",
    "ffn_width",
    "context",
    "tied_embeddings",
    "rope_base",
    "norm_eps",
)
"""What a plain Llama is told by; every other field has a default that is Llama's."""

_TINY: Final = PRESETS["tiny"]


def _even_share(data: dict[str, Any]) -> int:
    """Width of a head where none is given; 1 where width or heads is itself at fault, which is then what is told."""
    return max(1, data["width"] // data["heads"]) if {"width", "heads"} <= data.keys() else 1


class ModelConfig(Config):
    """A decoder. Left to its defaults a Llama: RMSNorm, rotary positions, SwiGLU, grouped-query attention, no biases.

    A preset named by `name` fills every field that is not given; `custom` fills none.
    """

    name: str = Field("tiny", description=f"preset that fills the fields not given: {', '.join(PRESETS)}; or {CUSTOM}")
    width: int = Field(_TINY["width"], ge=2, le=65536, description="width of the residual stream")
    layers: int = Field(_TINY["layers"], ge=1, le=1024, description="number of blocks")
    heads: int = Field(_TINY["heads"], ge=1, le=1024, description="number of query heads")
    kv_heads: int = Field(
        _TINY["kv_heads"],
        ge=1,
        le=1024,
        description="number of key and value heads, each shared by heads / kv_heads query heads",
    )
    head_width: int = Field(
        default_factory=_even_share, ge=1, le=65536, description="width of one head; width / heads where left out"
    )
    ffn_width: int = Field(_TINY["ffn_width"], ge=1, le=1 << 20, description="inner width of the feed-forward layer")
    context: int = Field(
        _TINY["context"], ge=2, le=1 << 24, description="longest sequence in tokens that the model is meant for"
    )
    positions: Literal["rope", "alibi", "learned", "sinusoidal", "none"] = Field(
        default="rope",
        description="how a token knows its place: rotary, linear biases, a learned or fixed table, or not",
    )
    rope_base: float = Field(_TINY["rope_base"], gt=1, description="base of the rotary frequencies (theta)")
    rope_scaling: RopeScaling | None = Field(
        default=None, description="rotary frequencies for a longer context: linear, ntk, yarn or llama3"
    )
    norm_eps: float = Field(
        _TINY["norm_eps"], gt=0, le=0.1, description="added to the mean square, or the variance, in a norm"
    )
    tied_embeddings: bool = Field(
        _TINY["tied_embeddings"], description="use the input embedding as the output matrix too"
    )
    attention: AttentionConfig = Field(default=AttentionConfig(), description="biases, windows and caps of attention")
    norm: NormConfig = Field(default=NormConfig(), description="which norm, and where")
    feed_forward: FeedForwardConfig = Field(
        default=FeedForwardConfig(), description="activation and biases between attentions"
    )
    scale: ScaleConfig = Field(
        default=ScaleConfig(), description="constant factors on embeddings, sublayers and logits"
    )
    latent: LatentConfig | None = Field(default=None, description="multi-head latent attention")
    experts: ExpertsConfig | None = Field(default=None, description="mixture of experts")
    mtp: PredictionConfig | None = Field(default=None, description="multi-token prediction, in training")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        """Fill what is not given from the preset; a bare string is the preset's name."""
        if isinstance(given, str):
            given = {"name": given}
        if not isinstance(given, dict):
            return given
        name = given.get("name", "tiny")
        if name == CUSTOM:
            missing = [field for field in LLAMA_FIELDS if field not in given]
            if missing:
                raise ValueError(f"a {CUSTOM} model has no preset, so give {', '.join(missing)} too")
            return given
        if not isinstance(name, str) or name not in PRESETS:
            close = difflib.get_close_matches(str(name), [*PRESETS, CUSTOM], n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join([*PRESETS, CUSTOM])}"
            raise ValueError(f"no model preset is called {name!r}; {hint}")
        return _laid_over(PRESETS[name], given)

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if "head_width" not in self.model_fields_set and self.width % self.heads:
            near = [n for n in range(1, self.width + 1) if self.width % n == 0 and (self.width // n) % 2 == 0]
            best = min(near, key=lambda n: abs(n - self.heads), default=1)
            raise ValueError(
                f"width {self.width} is not divisible by heads {self.heads}; heads={best} would fit, "
                "or give head_width too"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads {self.heads} is not divisible by kv_heads {self.kv_heads}; kv_heads={self.heads} always fits"
            )
        return self

    @model_validator(mode="after")
    def _positions_fit(self) -> Self:
        if self.positions == "rope" and self.head_width % 2:
            raise ValueError(
                f"width {self.width} / heads {self.heads} = {self.head_width} is odd, but rotary positions turn pairs; "
                "give an even head_width"
            )
        if self.positions == "sinusoidal" and self.width % 2:
            raise ValueError(f"width {self.width} is odd, but sinusoidal positions come in pairs; make it even")
        if self.positions != "rope" and self.rope_scaling is not None:
            raise ValueError(f"rope_scaling has no effect on {self.positions} positions: leave one of the two out")
        return self

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        if self.experts is not None and self.feed_forward.bias:
            raise ValueError("experts have no biases: leave feed_forward.bias out")
        if self.latent is None:
            return self
        if self.latent.rope_width % 2 or self.latent.rope_width >= self.head_width:
            raise ValueError(f"latent.rope_width must be even and below head_width, which is {self.head_width}")
        if self.kv_heads != self.heads:
            raise ValueError(f"latent attention gives every head its own keys; set kv_heads={self.heads}")
        if self.positions != "rope":
            raise ValueError(f"latent attention has rotary positions, not {self.positions}; leave positions out")
        if self.attention.qkv_bias or self.attention.qk_norm:
            raise ValueError("latent attention has neither qkv_bias nor qk_norm: leave them out of attention")
        return self

    @property
    def rotary_width(self) -> int:
        """How much of a head rotary positions turn."""
        return self.head_width if self.latent is None else self.latent.rope_width


def _laid_over(preset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given over the preset's values; a block is laid over a block unless it is named and the name changes."""
    merged = dict(preset)
    for field, value in given.items():
        below = preset.get(field)
        if (
            isinstance(value, Mapping)
            and isinstance(below, Mapping)
            and value.get("name", below.get("name")) == below.get("name")
        ):
            merged[field] = {**below, **value}
        else:
            merged[field] = value
    return merged
