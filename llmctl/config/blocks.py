"""The blocks of a model's configuration: what its attention, norms, feed-forward layers and scales are.

The default of every field is what a plain Llama does, so a block that is left out changes nothing.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llmctl.config.base import Config

Reach = Literal["local", "global"]


class LinearScaling(Config):
    """Positions divided by a factor (Chen et al. 2023, arXiv:2306.15595)."""

    name: Literal["linear"] = Field(default="linear", description="which scaling")
    factor: float = Field(ge=1, le=1e4, description="how many times longer the context becomes")


class NtkScaling(Config):
    """The base raised so that the slowest frequency is divided by the factor (bloc97 2023; arXiv:2309.00071, A.1)."""

    name: Literal["ntk"] = Field(default="ntk", description="which scaling")
    factor: float = Field(ge=1, le=1e4, description="how many times longer the context becomes")


class YarnScaling(Config):
    """Slow frequencies divided by the factor, fast ones kept (YaRN: Peng et al. 2023, arXiv:2309.00071)."""

    name: Literal["yarn"] = Field(default="yarn", description="which scaling")
    factor: float = Field(ge=1, le=1e4, description="how many times longer the context becomes")
    original_context: int = Field(ge=2, le=1 << 24, description="context in tokens before the scaling")
    beta_fast: float = Field(
        default=32.0, gt=0, description="a pair that turns so often in the original context is kept"
    )
    beta_slow: float = Field(
        default=1.0, gt=0, description="a pair that turns so seldom in it is divided by the factor"
    )
    attention_factor: float | None = Field(
        default=None, gt=0, description="multiplies cosine and sine; 0.1 ln(factor) + 1 where left out"
    )


class Llama3Scaling(Config):
    """Wave lengths beyond the original context divided by the factor (Llama 3.1: arXiv:2407.21783, section 3.4.2)."""

    name: Literal["llama3"] = Field(default="llama3", description="which scaling")
    factor: float = Field(ge=1, le=1e4, description="how many times longer the context becomes")
    original_context: int = Field(ge=2, le=1 << 24, description="context in tokens before the scaling")
    low_frequency_factor: float = Field(
        default=1.0, gt=0, description="waves longer than original_context / this are divided by the factor"
    )
    high_frequency_factor: float = Field(
        default=4.0, gt=0, description="waves shorter than original_context / this are kept; between the two is a ramp"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low_frequency_factor >= self.high_frequency_factor:
            raise ValueError("low_frequency_factor must be below high_frequency_factor, as 1 and 4 are")
        return self


RopeScaling = Annotated[LinearScaling | NtkScaling | YarnScaling | Llama3Scaling, Field(discriminator="name")]


class AttentionConfig(Config):
    """What attention does beyond softmax(q k' / sqrt(E)) v."""

    qkv_bias: bool = Field(default=False, description="biases of the query, key and value projections")
    output_bias: bool = Field(default=False, description="bias of the output projection")
    qk_norm: bool = Field(default=False, description="RMSNorm of each head's queries and keys, before the positions")
    scale: float | None = Field(
        default=None, gt=0, description="factor of the scores; 1 / sqrt(head_width) where left out"
    )
    window: int | None = Field(
        default=None, ge=1, le=1 << 24, description="tokens that a local layer sees, itself included; none: all of them"
    )
    pattern: tuple[Reach, ...] = Field(
        default=("local",),
        min_length=1,
        max_length=1024,
        description="which layers the window holds for, repeated over depth",
    )
    softcap: float | None = Field(default=None, gt=0, description="scores become cap x tanh(score / cap)")
    sinks: bool = Field(default=False, description="a learned score for each head that takes weight and gives nothing")

    @model_validator(mode="after")
    def _pattern_has_a_window(self) -> Self:
        if self.window is None and self.pattern != ("local",):
            raise ValueError("pattern says which layers are local, so give window too")
        return self

    def window_of(self, layer: int) -> int | None:
        """Tokens that layer number `layer` sees; None for all before it."""
        return self.window if self.pattern[layer % len(self.pattern)] == "local" else None


class NormConfig(Config):
    """Which norm, and where it stands."""

    name: Literal["rms", "layer"] = Field(default="rms", description="RMSNorm or LayerNorm")
    bias: bool = Field(default=False, description="bias of a LayerNorm")
    place: Literal["pre", "post", "sandwich"] = Field(
        default="pre",
        description="pre: before each sublayer; post: after the addition to the stream; sandwich: before and after "
        "each sublayer",
    )

    @model_validator(mode="after")
    def _bias_fits(self) -> Self:
        if self.bias and self.name == "rms":
            raise ValueError("RMSNorm has no bias: leave bias out, or set name=layer")
        return self


class FeedForwardConfig(Config):
    """The feed-forward layer between two attentions."""

    activation: Literal["swiglu", "geglu", "gelu", "gelu_tanh", "relu2"] = Field(
        default="swiglu",
        description="swiglu and geglu have a gate; gelu, gelu_tanh (its approximation) and relu2 have none",
    )
    bias: bool = Field(default=False, description="biases of the feed-forward layer")

    @property
    def gated(self) -> bool:
        """Whether the inner layer is multiplied by a gate."""
        return self.activation in ("swiglu", "geglu")


class ScaleConfig(Config):
    """Constant factors on the way through the model."""

    embedding: float = Field(default=1.0, gt=0, description="multiplies the token embeddings")
    residual: float = Field(default=1.0, gt=0, description="multiplies what each sublayer adds to the stream")
    logits: float = Field(default=1.0, gt=0, description="multiplies the logits")
    logit_softcap: float | None = Field(default=None, gt=0, description="logits become cap x tanh(logit / cap)")


class ExpertsConfig(Config):
    """A mixture of experts in place of the feed-forward layer; no token is ever dropped."""

    count: int = Field(ge=2, le=4096, description="routed experts of a layer")
    top: int = Field(ge=1, le=4096, description="routed experts that a token passes through")
    ffn_width: int = Field(ge=1, le=1 << 20, description="inner width of one expert; small ones are fine-grained")
    shared: int = Field(default=0, ge=0, le=64, description="experts that every token passes through beside the routed")
    first_dense: int = Field(
        default=0, ge=0, le=1024, description="layers at the start with a plain feed-forward layer"
    )
    router: Literal["softmax", "sigmoid"] = Field(default="softmax", description="how scores become weights")
    normalise: bool = Field(default=True, description="the weights of a token's experts are divided by their sum")
    scale: float = Field(default=1.0, gt=0, description="multiplies what the routed experts give")
    groups: int = Field(default=1, ge=1, le=1024, description="groups of experts, of which a token sees groups_kept")
    groups_kept: int = Field(default=1, ge=1, le=1024, description="groups with the best two experts that remain")
    balance: Literal["none", "bias"] = Field(
        default="none", description="bias: a bias on the choice alone rises for experts with too few tokens"
    )
    balance_rate: float = Field(default=1e-3, gt=0, lt=1, description="by how much the bias moves at each step")
    balance_loss: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="weight of the loss for uneven choices within a row; Switch has 1e-2, DeepSeek-V3 1e-4",
    )
    z_loss: float = Field(default=0.0, ge=0, le=10, description="weight of the loss for large scores; ST-MoE has 1e-3")

    @model_validator(mode="after")
    def _choice_is_possible(self) -> Self:
        size = self.count // self.groups
        if self.count % self.groups or (self.groups > 1 and size < 2):
            raise ValueError(f"count {self.count} must be a multiple of groups {self.groups}, two experts or more each")
        if self.groups_kept > self.groups:
            raise ValueError(f"groups_kept {self.groups_kept} exceeds groups {self.groups}; give at most {self.groups}")
        if self.top > size * self.groups_kept:
            raise ValueError(
                f"top {self.top} exceeds the experts to choose from; give at most {size * self.groups_kept}"
            )
        if self.top == 1 and self.normalise:
            raise ValueError(
                "with top 1 a normalised weight is always 1, and the router learns nothing; set normalise=false"
            )
        return self


class LatentConfig(Config):
    """Multi-head latent attention: keys and values made from one small vector, which is all that is cached."""

    kv_rank: int = Field(ge=1, le=65536, description="width of the vector that keys and values are made from")
    query_rank: int | None = Field(
        default=None, ge=1, le=65536, description="width of the vector that queries are made from; none: the stream"
    )
    rope_width: int = Field(
        ge=2, le=65536, description="part of head_width that carries positions, shared by all heads"
    )
    value_width: int = Field(ge=1, le=65536, description="width of one head's values")


class PredictionConfig(Config):
    """Multi-token prediction (DeepSeek-V3, arXiv:2412.19437, section 2.2): blocks behind the model, in training only.

    Block k predicts the token k places behind the next one from the state of the block before it and the tokens up to
    the one before that token.
    """

    depth: int = Field(default=1, ge=1, le=8, description="tokens behind the next one that are predicted too")
    weight: float = Field(
        default=0.3, gt=0, le=10, description="of their mean loss; DeepSeek-V3 has 0.3, and 0.1 for its last third"
    )
