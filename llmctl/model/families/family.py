"""What a family of checkpoints is: its `config.json` and the names of its tensors, both ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmctl.config.blocks import RopeScaling
from llmctl.config.model import CUSTOM, ModelConfig
from llmctl.model.families.links import Link, Shapes
from llmctl.model.families.rope_json import RopeFields

ROTARY_TABLES = re.compile(
    r".*rotary_emb\.inv_freq"
)  # early checkpoints carry them; they follow from the configuration


class Fields(BaseModel):
    """The fields of `config.json` that decide what is computed; all others are ignored, `auto_map` among them."""

    model_config = ConfigDict(extra="ignore", strict=True)

    vocab_size: int = Field(ge=1, le=1 << 24)
    quantization_config: None = None


class DecoderFields(Fields):
    """What all relatives of Llama share."""

    default_rope_base: ClassVar[float] = 10_000.0

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int | None = None
    intermediate_size: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    head_dim: int | None = None
    tie_word_embeddings: bool = False
    hidden_act: Literal["silu"] = "silu"
    partial_rotary_factor: float = Field(default=1.0, ge=1, le=1)
    rope_theta: float | None = None
    rope_parameters: RopeFields | None = None
    rope_scaling: RopeFields | None = None

    @property
    def rope_base(self) -> float:
        """Theta, wherever it stands."""
        told = [rope.rope_theta for rope in (self.rope_parameters, self.rope_scaling) if rope]
        return next((theta for theta in [*told, self.rope_theta] if theta is not None), self.default_rope_base)

    @property
    def scaling(self) -> RopeScaling | None:
        """Of the rotary frequencies, wherever it stands."""
        rope = self.rope_scaling or self.rope_parameters
        return rope.scaling(self.max_position_embeddings) if rope else None

    def decoder(self, **more: Any) -> ModelConfig:
        """Our shape; `more` are the blocks in which a family differs from a plain Llama."""
        heads = self.num_attention_heads
        shape: dict[str, Any] = {
            "name": CUSTOM,
            "width": self.hidden_size,
            "layers": self.num_hidden_layers,
            "heads": heads,
            "kv_heads": self.num_key_value_heads or heads,
            "ffn_width": self.intermediate_size,
            "context": self.max_position_embeddings,
            "rope_base": self.rope_base,
            "rope_scaling": self.scaling,
            "norm_eps": self.rms_norm_eps,
            "tied_embeddings": self.tie_word_embeddings,
        }
        if self.head_dim is not None:
            shape["head_width"] = self.head_dim
        return ModelConfig(**{**shape, **more})


@dataclass(frozen=True)
class Family:
    """One layout of checkpoints.

    Attributes:
        model_type, architecture: as `config.json` names them.
        fields: what is read of `config.json`.
        shape: from them to our configuration; a `ValueError` where ours cannot be it.
        describe: from our configuration to theirs, the fields of `fields` but `vocab_size`. It need not check whether
            it can: what `shape` does not give back unchanged is not expressed.
        links: where each parameter lies.
        idle: pattern of tensors that carry nothing which is needed.
    """

    model_type: str
    architecture: str
    fields: type[Fields]
    shape: Callable[[Any], ModelConfig]
    describe: Callable[[ModelConfig], dict[str, Any]]
    links: Callable[[ModelConfig, Shapes], list[Link]]
    idle: Callable[[ModelConfig], re.Pattern[str]] = lambda _: ROTARY_TABLES

    def read(self, content: Mapping[str, Any]) -> tuple[ModelConfig, int]:
        """Shape and vocabulary size that a `config.json` tells.

        Raises:
            ValueError: a field is missing, wrong, or asks for what is not computed here (pydantic's is one).
        """
        fields = self.fields.model_validate(dict(content))
        return self.shape(fields), fields.vocab_size

    def expresses(self, config: ModelConfig) -> bool:
        """Whether a canonical configuration comes back from the family's `config.json` as it was."""
        try:
            back, _ = self.read({**self.describe(config), "vocab_size": 1})
        except ValueError:
            return False
        return alike(canonical(back), canonical(config))


def canonical(config: ModelConfig) -> ModelConfig:
    """The same computation in one form: fields that have no effect at their defaults, and no name.

    What matters to training alone is left out: multi-token prediction, and how experts are balanced.
    """
    values = config.model_dump()
    values |= {"name": CUSTOM, "mtp": None}
    if config.positions != "rope":
        values["rope_base"] = 10_000.0
    if config.rope_scaling is not None and config.rope_scaling.name == "ntk":  # by definition a higher base
        width = config.rotary_width
        values["rope_base"] = config.rope_base * config.rope_scaling.factor ** (width / max(1, width - 2))
        values["rope_scaling"] = None
    attention = values["attention"]
    if config.attention.scale is not None and abs(config.attention.scale * config.head_width**0.5 - 1) < 1e-12:
        attention["scale"] = None
    attention["window"], attention["pattern"] = _windows(config)
    if config.experts is not None:
        values["experts"] |= {"balance_rate": 1e-3, "balance_loss": 0.0, "z_loss": 0.0}
        if config.experts.first_dense == 0:
            values["ffn_width"] = config.experts.ffn_width
        if config.experts.groups_kept == config.experts.groups:
            values["experts"] |= {"groups": 1, "groups_kept": 1}
    return ModelConfig.model_validate(values)


def _windows(config: ModelConfig) -> tuple[int | None, tuple[str, ...]]:
    """Window and the shortest pattern that says the same."""
    windows = [config.attention.window_of(layer) for layer in range(config.layers)]
    if not any(windows):
        return None, ("local",)
    reaches = ["local" if window else "global" for window in windows]
    period = next(
        period
        for period in range(1, config.layers + 1)
        if all(reaches[layer] == reaches[layer % period] for layer in range(config.layers))
    )
    return config.attention.window, tuple(reaches[:period])


def alike(one: Any, other: Any, within: float = 1e-9) -> bool:
    """Equality of configurations, numbers to one part in 1 / `within`: some go through a square root and back."""
    if isinstance(one, ModelConfig) and isinstance(other, ModelConfig):
        return alike(one.model_dump(), other.model_dump(), within)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key], within) for key in one)
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= within * max(abs(one), abs(other))
    return bool(one == other)
