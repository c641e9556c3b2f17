"""One dial: depth, or a number of parameters, from which shape, batch, learning rate and steps follow.

Each rule is a guess that others measured, and says whose; each value that follows can be set by hand. Everything here
is arithmetic on the configuration: no input is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from llmctl.config.base import Config
from llmctl.config.model import CUSTOM

ASPECT_RATIO: Final = 64
TOKENS_PER_PARAMETER: Final = 20.0
DEEPEST: Final = 128
CLOSE: Final = 0.05  # a shape within this share of the parameters asked for is as good as any other
SUFFIXES: Final = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
RULES: Final = {
    "width": "64 x depth, as nanochat; a multiple of the head width. With params: of the depths and widths within "
    "5% of it, or else nearest to it, the one nearest to that ratio",
    "heads": "of width 32 below a width of 256, 64 below 1024, and then 128, as nanochat; keys and values for each",
    "ffn_width": "8/3 x width, to the next multiple of 64 (Llama: Touvron et al. 2023, arXiv:2302.13971, section 2.2)",
    "tokens": "20 for each parameter (Chinchilla: Hoffmann et al. 2022, arXiv:2203.15556, table 3)",
    "batch": "0.2920 x C^0.3271 tokens, C = 6 x parameters x tokens (DeepSeek LLM: Bi et al. 2024, arXiv:2401.02954, "
    "equation 1; fitted for C from 1e17 to 2e19), to the nearest power of two in rows",
    "lr": "0.3118 x C^-0.1250 (the same), for AdamW alone",
    "steps": "tokens / (batch_rows x seq_len), rounded up",
}
"""How each value follows, for people."""


class DialConfig(Config):
    """What the dial is set to, and what it takes for granted of the rows."""

    depth: int | None = Field(
        None, ge=1, le=DEEPEST, description="Blocks of the model; its width, batch, learning rate and steps follow."
    )
    params: str | None = Field(None, description="Parameters, such as 50M: depth and all that follows from it.")
    vocab_size: int = Field(8192, ge=16, le=1_000_000, description="Ids in the vocabulary of the rows.")
    seq_len: int = Field(1024, ge=2, le=1 << 24, description="Tokens in a row.")
    tokens_per_parameter: float = Field(
        TOKENS_PER_PARAMETER, gt=0, le=1e6, description="Tokens trained on for each parameter."
    )

    @field_validator("params", mode="before")
    @classmethod
    def _plain_number(cls, params: Any) -> Any:
        return f"{params:.0f}" if isinstance(params, int | float) else params

    @field_validator("params")
    @classmethod
    def _count_reads(cls, params: str | None) -> str | None:
        if params is not None:
            parse_count(params)
        return params

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.depth is None) == (self.params is None):
            raise ValueError("give depth or params, one of the two")
        return self


def parse_count(text: str) -> int:
    """`50M`, `1.5B`, `124_000_000` as a number.

    Raises:
        ValueError: it is none, or out of bounds.
    """
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)([KMB]?)", text.strip().upper())
    count = round(float(match[1].replace("_", "")) * SUFFIXES[match[2]]) if match else 0
    if not 10**4 <= count <= 10**13:
        raise ValueError(f"{text!r} is no number of parameters from 10K to 10000B; write 50M or 1.5B")
    return count


@dataclass(frozen=True)
class Dialled:
    """What follows.

    Attributes:
        layers: as `ModelConfig`.
        width: as `ModelConfig`.
        vocab_size: rows of the embedding, which is tied to the output matrix.
        seq_len: tokens in a row.
        tokens: to train on.
    """

    layers: int
    width: int
    vocab_size: int
    seq_len: int
    tokens: int

    @property
    def head_width(self) -> int:
        """See `RULES`."""
        return _head_width(self.width)

    @property
    def ffn_width(self) -> int:
        """See `RULES`."""
        return -(-8 * self.width // (3 * 64)) * 64

    @property
    def parameters(self) -> int:
        """Of the model with tied embeddings."""
        return _parameters(self.layers, self.width, self.vocab_size)

    @property
    def compute(self) -> float:
        """C, in floating-point operations."""
        return 6.0 * self.parameters * self.tokens

    @property
    def batch_rows(self) -> int:
        """See `RULES`."""
        rows = 0.2920 * self.compute**0.3271 / self.seq_len
        return int(2 ** max(0, round(math.log2(rows))))

    @property
    def lr(self) -> float:
        """See `RULES`; two digits, as more would claim too much."""
        return float(f"{0.3118 * self.compute**-0.1250:.1e}")

    @property
    def steps(self) -> int:
        """See `RULES`."""
        return -(-self.tokens // (self.batch_rows * self.seq_len))

    def model(self) -> dict[str, Any]:
        """The fields of the model."""
        heads = self.width // self.head_width
        return {
            "name": CUSTOM,
            "width": self.width,
            "layers": self.layers,
            "heads": heads,
            "kv_heads": heads,
            "ffn_width": self.ffn_width,
            "context": self.seq_len,
            "tied_embeddings": True,
            "rope_base": 10_000.0,
            "norm_eps": 1e-5,
        }

    def described(self) -> dict[str, Any]:
        """What no field of the configuration shows, and the rules."""
        return {
            "parameters": self.parameters,
            "tokens": self.tokens,
            "tokens_per_step": self.batch_rows * self.seq_len,
            "compute_flops": self.compute,
            "rules": RULES,
        }


def dialled(dial: DialConfig) -> Dialled:
    """What follows from the dial; pure."""
    layers, width = _shape(dial)
    parameters = _parameters(layers, width, dial.vocab_size)
    tokens = max(dial.seq_len, round(parameters * dial.tokens_per_parameter))
    return Dialled(layers, width, dial.vocab_size, dial.seq_len, tokens)


def laid_under(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a pretraining run with what follows from `given["dial"]` in place of those not given.

    Raises:
        ValueError: a preset is named beside the dial.
    """
    fields, block, model = dict(given), given.get("dial"), given.get("model", {})
    if block is None:
        return fields
    try:
        dial = DialConfig.model_validate(block)
    except ValidationError:
        return fields  # the field itself tells what is wrong with it
    preset = model.get("name", CUSTOM) if isinstance(model, Mapping) else model
    if isinstance(preset, str) and preset != CUSTOM:
        raise ValueError(f"the dial chooses the shape, so it goes without the preset {preset}: leave one of them out")
    follows = dialled(dial)
    if isinstance(model, Mapping):
        fields["model"] = {**follows.model(), **model}
    fields.setdefault("steps", follows.steps)
    fields.setdefault("batch_rows", follows.batch_rows)
    optimizer = fields.get("optimizer", {})
    if isinstance(optimizer, Mapping) and optimizer.get("name", "adamw") == "adamw":
        fields["optimizer"] = {"lr": follows.lr, **optimizer}
    elif optimizer == "adamw":
        fields["optimizer"] = {"name": "adamw", "lr": follows.lr}
    return fields


def _head_width(width: int) -> int:
    return 32 if width < 256 else 64 if width < 1024 else 128


def _widths(layers: int) -> list[int]:
    """The widths of a depth whose ratio to it is between half of and twice the usual one."""
    least, most = ASPECT_RATIO * layers // 2, 2 * ASPECT_RATIO * layers
    return [width for width in range(32, most + 1, 32) if width >= least and width % _head_width(width) == 0]


def _shape(dial: DialConfig) -> tuple[int, int]:
    """(layers, width)."""
    if dial.depth is not None:
        width = ASPECT_RATIO * dial.depth
        return dial.depth, -(-width // _head_width(width)) * _head_width(width)
    assert dial.params is not None, "one of the two is given"
    wanted = parse_count(dial.params)

    def far(shape: tuple[int, int]) -> tuple[float, float]:
        """First how far beyond what is close, then how far from the usual ratio."""
        layers, width = shape
        off = abs(math.log(_parameters(layers, width, dial.vocab_size) / wanted))
        return max(off, CLOSE), abs(math.log(width / (ASPECT_RATIO * layers)))

    return min(((layers, width) for layers in range(1, DEEPEST + 1) for width in _widths(layers)), key=far)


def _parameters(layers: int, width: int, vocab_size: int) -> int:
    """Of attention (4 D^2), the feed-forward layer (3 D F), two norms for each block; embedding and last norm."""
    ffn_width = -(-8 * width // (3 * 64)) * 64
    return layers * (4 * width**2 + 3 * width * ffn_width + 2 * width) + vocab_size * width + width
