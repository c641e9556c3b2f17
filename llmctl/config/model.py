"""The shape of a decoder, and the named shapes (presets) that fill it."""

from __future__ import annotations

import difflib
from typing import Any, Final, Self

from pydantic import Field, model_validator

from llmctl.config.base import Config

CUSTOM: Final = "custom"


def _shape(
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    ffn_width: int,
    *,
    context: int,
    tied: bool,
    rope_base: float = 10_000.0,
) -> dict[str, Any]:
    return {
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "ffn_width": ffn_width,
        "context": context,
        "tied_embeddings": tied,
        "rope_base": rope_base,
        "norm_eps": 1e-5,
    }


PRESETS: Final[dict[str, dict[str, Any]]] = {
    # Parameter counts are with the vocabulary size in brackets.
    "nano": _shape(64, 2, 4, 2, 176, context=512, tied=True),  # 0.35 M (4 096); for tests
    "tiny": _shape(192, 3, 6, 2, 512, context=1024, tied=True),  # 2.0 M (4 096); minutes on two CPU cores
    "small": _shape(320, 6, 5, 5, 896, context=1024, tied=True),  # 10.2 M (8 192); an hour on a CPU
    "base": _shape(768, 12, 12, 12, 2048, context=1024, tied=True),  # 124 M (50 304); depth and width of GPT-2 small
    "350m": _shape(960, 32, 15, 5, 2560, context=2048, tied=True),  # 362 M (49 152); SmolLM-360M
    "1b": _shape(2048, 22, 32, 4, 5632, context=2048, tied=False),  # 1.10 B (32 000); TinyLlama-1.1B
    "7b": _shape(4096, 32, 32, 32, 11008, context=4096, tied=False),  # 6.74 B (32 000); Llama 2 7B
}

_TINY: Final = PRESETS["tiny"]


class ModelConfig(Config):
    """A Llama-style decoder: RMSNorm, rotary positions, SwiGLU, grouped-query attention, no biases.

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
    ffn_width: int = Field(
        _TINY["ffn_width"], ge=1, le=1 << 20, description="inner width of the SwiGLU feed-forward layer"
    )
    context: int = Field(
        _TINY["context"], ge=2, le=1 << 24, description="longest sequence in tokens that the model is meant for"
    )
    rope_base: float = Field(_TINY["rope_base"], gt=1, description="base of the rotary frequencies (theta)")
    norm_eps: float = Field(_TINY["norm_eps"], gt=0, le=0.1, description="added to the mean square in RMSNorm")
    tied_embeddings: bool = Field(
        _TINY["tied_embeddings"], description="use the input embedding as the output matrix too"
    )

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
            missing = [field for field in _TINY if field not in given]
            if missing:
                raise ValueError(f"a {CUSTOM} model has no preset, so give {', '.join(missing)} too")
            return given
        if not isinstance(name, str) or name not in PRESETS:
            close = difflib.get_close_matches(str(name), [*PRESETS, CUSTOM], n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join([*PRESETS, CUSTOM])}"
            raise ValueError(f"no model preset is called {name!r}; {hint}")
        return {**PRESETS[name], **given}

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads:
            near = [n for n in range(1, self.width + 1) if self.width % n == 0 and (self.width // n) % 2 == 0]
            best = min(near, key=lambda n: abs(n - self.heads), default=1)
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}; heads={best} would fit")
        if self.head_width % 2:
            raise ValueError(
                f"width {self.width} / heads {self.heads} = {self.head_width} is odd, but rotary positions turn pairs"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads {self.heads} is not divisible by kv_heads {self.kv_heads}; kv_heads={self.heads} always fits"
            )
        return self

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads
