"""What a GGUF file says of the model in it, and what is said of ours in one: architectures by llama.cpp's names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmctl.config.blocks import (
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LinearScaling,
    Llama3Scaling,
    NormConfig,
    RopeScaling,
    YarnScaling,
)
from llmctl.config.errors import InputError
from llmctl.config.model import CUSTOM, ModelConfig
from llmctl.model.families.family import alike, canonical
from llmctl.model.families.gguf_names import OUTPUT, fused, name_by_name, turned
from llmctl.model.families.links import Link, Shapes, our_shapes

WITHIN = 1e-6  # figures are kept in float32


class GgufFields(BaseModel):
    """The metadata that decide what is computed, by their keys less the architecture's name."""

    model_config = ConfigDict(extra="ignore", strict=True, populate_by_name=True)

    block_count: int
    context_length: int
    embedding_length: int = Field(ge=1)
    feed_forward_length: int | None = None
    heads: int = Field(alias="attention.head_count", ge=1)
    kv_heads: int | None = Field(default=None, alias="attention.head_count_kv")
    key_length: int | None = Field(default=None, alias="attention.key_length")
    value_length: int | None = Field(default=None, alias="attention.value_length")
    rms_eps: float = Field(default=1e-5, alias="attention.layer_norm_rms_epsilon")
    layer_eps: float = Field(default=1e-5, alias="attention.layer_norm_epsilon")
    window: None = Field(default=None, alias="attention.sliding_window")
    rope_width: int | None = Field(default=None, alias="rope.dimension_count")
    rope_base: float = Field(default=10_000.0, alias="rope.freq_base")
    scaling: str = Field(default="none", alias="rope.scaling.type")
    scaling_factor: float = Field(default=1.0, alias="rope.scaling.factor")
    original_context: int | None = Field(default=None, alias="rope.scaling.original_context_length")
    expert_count: int = 0
    expert_used_count: int = 0
    expert_width: int | None = Field(default=None, alias="expert_feed_forward_length")

    def rope_scaling(self, llama3: RopeScaling | None) -> RopeScaling | None:
        """Of the rotary frequencies; `llama3` is what the tensor of factors says."""
        if self.scaling in ("none", ""):
            return llama3
        if self.scaling == "linear":
            return LinearScaling(factor=shortest(self.scaling_factor))
        if self.scaling == "yarn":
            original = self.original_context or self.context_length
            return YarnScaling(factor=shortest(self.scaling_factor), original_context=original)
        raise ValueError(f"rope.scaling.type is {self.scaling!r}, which is not known here")

    def check_widths(self) -> int:
        """The width of a head; the whole of it must be turned, and values be as wide."""
        width = self.key_length or self.embedding_length // self.heads
        for told in (self.value_length, self.rope_width):
            if told not in (None, width):
                raise ValueError(f"heads are {width} wide, but their values or their rotary part {told}")
        return width


def shortest(value: float) -> float:
    """The shortest decimal that is this number in float32, in which GGUF keeps it: 1e-05, not 9.99999975e-06."""
    return float(str(np.float32(value)))


@dataclass(frozen=True)
class GgufKin:
    """One architecture of llama.cpp.

    Attributes:
        architecture: its name.
        shape: from the metadata, the names of the tensors and a scaling that a tensor tells, to our configuration.
        links: where each parameter lies.
    """

    architecture: str
    shape: Callable[[GgufFields, Collection[str], RopeScaling | None], ModelConfig]
    links: Callable[[ModelConfig, Shapes], list[Link]]

    def read(self, metadata: Mapping[str, Any], names: Collection[str], llama3: RopeScaling | None) -> ModelConfig:
        """Our configuration.

        Raises:
            ValueError: a key is missing, wrong, or asks for what is not computed here.
        """
        head = f"{self.architecture}."
        own = {key.removeprefix(head): value for key, value in metadata.items() if key.startswith(head)}
        return self.shape(GgufFields.model_validate(own), names, llama3)

    def expresses(self, config: ModelConfig) -> bool:
        """Whether a canonical configuration comes back from the metadata as it was."""
        try:
            links = self.links(config, our_shapes(config, 1))
            names = {theirs for link in links for theirs in link.theirs}
            llama3 = config.rope_scaling if isinstance(config.rope_scaling, Llama3Scaling) else None
            back = self.read(self.describe(config), names, llama3)
        except ValueError:
            return False
        return alike(canonical(back), config, within=WITHIN)

    def describe(self, config: ModelConfig) -> dict[str, Any]:
        """The metadata of a model, but for its vocabulary."""
        values: dict[str, Any] = {
            "block_count": config.layers,
            "context_length": config.context,
            "embedding_length": config.width,
            "feed_forward_length": config.ffn_width,
            "attention.head_count": config.heads,
            "attention.head_count_kv": config.kv_heads,
            "attention.key_length": config.head_width,
            "attention.value_length": config.head_width,
        }
        epsilon = "layer_norm_epsilon" if config.norm.name == "layer" else "layer_norm_rms_epsilon"
        values[f"attention.{epsilon}"] = config.norm_eps
        if config.positions == "rope":
            values |= {"rope.dimension_count": config.head_width, "rope.freq_base": config.rope_base}
        if isinstance(config.rope_scaling, LinearScaling | YarnScaling):
            values |= {"rope.scaling.type": config.rope_scaling.name, "rope.scaling.factor": config.rope_scaling.factor}
        if isinstance(config.rope_scaling, YarnScaling):
            values["rope.scaling.original_context_length"] = config.rope_scaling.original_context
        if config.experts is not None:
            values |= {
                "expert_count": config.experts.count,
                "expert_used_count": config.experts.top,
                "expert_feed_forward_length": config.experts.ffn_width,
            }
        return {f"{self.architecture}.{key}": value for key, value in values.items()}


def _decoder(fields: GgufFields, names: Collection[str], llama3: RopeScaling | None) -> ModelConfig:
    """A Llama or one of its relatives; biases and norms of queries and keys are there or not."""

    def has(name: str) -> bool:
        return f"blk.0.{name}" in names

    experts = None
    if fields.expert_count:
        experts = ExpertsConfig(
            count=fields.expert_count,
            top=fields.expert_used_count,
            ffn_width=fields.expert_width or fields.feed_forward_length or 1,
        )
    return ModelConfig(
        name=CUSTOM,
        width=fields.embedding_length,
        layers=fields.block_count,
        heads=fields.heads,
        kv_heads=fields.kv_heads or fields.heads,
        head_width=fields.check_widths(),
        ffn_width=fields.feed_forward_length or fields.expert_width or 1,
        context=fields.context_length,
        rope_base=shortest(fields.rope_base),
        rope_scaling=fields.rope_scaling(llama3),
        norm_eps=shortest(fields.rms_eps),
        tied_embeddings=OUTPUT not in names,
        attention=AttentionConfig(
            qkv_bias=has("attn_q.bias"), output_bias=has("attn_output.bias"), qk_norm=has("attn_q_norm.weight")
        ),
        feed_forward=FeedForwardConfig(bias=has("ffn_up.bias")),
        experts=experts,
    )


def _gpt2(fields: GgufFields, names: Collection[str], llama3: RopeScaling | None) -> ModelConfig:
    del llama3
    return ModelConfig(
        name=CUSTOM,
        width=fields.embedding_length,
        layers=fields.block_count,
        heads=fields.heads,
        kv_heads=fields.heads,
        ffn_width=fields.feed_forward_length or 4 * fields.embedding_length,
        context=fields.context_length,
        positions="learned",
        rope_base=10_000.0,
        norm_eps=shortest(fields.layer_eps),
        tied_embeddings=OUTPUT not in names,
        attention=AttentionConfig(qkv_bias=True, output_bias=True),
        norm=NormConfig(name="layer", bias=True),
        feed_forward=FeedForwardConfig(activation="gelu_tanh", bias=True),
    )


def _plain(fields: GgufFields, names: Collection[str], llama3: RopeScaling | None) -> ModelConfig:
    """Llama and Mixtral: no norms of queries and keys."""
    config = _decoder(fields, names, llama3)
    if config.attention.qk_norm:
        raise ValueError("a llama with norms of queries and keys is not known here")
    return config


def _qwen3(fields: GgufFields, names: Collection[str], llama3: RopeScaling | None) -> ModelConfig:
    config = _decoder(fields, names, llama3)
    if config.experts is not None:
        raise ValueError("a qwen3 has no experts")
    return _without_biases(config)


def _qwen3_experts(fields: GgufFields, names: Collection[str], llama3: RopeScaling | None) -> ModelConfig:
    config = _decoder(fields, names, llama3)
    if config.experts is None:
        raise ValueError("a qwen3moe has experts")
    return _without_biases(config)


def _without_biases(config: ModelConfig) -> ModelConfig:
    """A Qwen3, if it is one."""
    if config.attention.qkv_bias or config.attention.output_bias or config.feed_forward.bias:
        raise ValueError("a qwen3 has no biases")
    if not config.attention.qk_norm:
        raise ValueError("a qwen3 has norms of queries and keys")
    return config


def _qwen2(fields: GgufFields, names: Collection[str], llama3: RopeScaling | None) -> ModelConfig:
    config = _decoder(fields, names, llama3)
    others = config.attention.output_bias or config.feed_forward.bias
    if config.experts is not None or not config.attention.qkv_bias or others:
        raise ValueError("a qwen2 has biases of query, key and value, no others, and no experts")
    return config


KIN: Final = {
    kin.architecture: kin
    for kin in (
        GgufKin("qwen2", _qwen2, name_by_name),
        GgufKin("llama", _plain, turned),
        GgufKin("qwen3", _qwen3, name_by_name),
        GgufKin("qwen3moe", _qwen3_experts, name_by_name),
        GgufKin("gpt2", _gpt2, fused),
    )
}
"""By architecture. Earlier ones come first where several express a shape."""


def kin_named(path: str, architecture: Any) -> GgufKin:
    """The architecture that a file names.

    Raises:
        InputError: it is not known here.
    """
    if not isinstance(architecture, str) or architecture not in KIN:
        raise InputError(
            f"{path}: general.architecture is {architecture!r}, which is not known here",
            hint=f"known: {', '.join(KIN)}",
        )
    return KIN[architecture]


def kin_for(config: ModelConfig) -> GgufKin | None:
    """The first architecture that expresses a canonical configuration; None where none does."""
    return next((kin for kin in KIN.values() if kin.expresses(config)), None)


def faults(error: ValueError) -> str:
    """What is wrong, on one line, each with its key."""
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
    return str(error)
