"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, GELU, biases, matrices multiplied from the right."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

from pydantic import Field

from llmctl.config.blocks import AttentionConfig, FeedForwardConfig, NormConfig
from llmctl.config.model import CUSTOM, ModelConfig
from llmctl.model.families.family import Family, Fields
from llmctl.model.families.links import Link, Shapes, joined, same, transposed
from llmctl.model.families.llama import HEAD

ACTIVATIONS: Final[dict[str, Literal["gelu", "gelu_tanh"]]] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
}


class Gpt2Fields(Fields):
    """`config.json` of GPT-2."""

    n_embd: int
    n_layer: int
    n_head: int = Field(ge=1)
    n_positions: int = 1024
    n_inner: int | None = None
    activation_function: Literal["gelu_new", "gelu_pytorch_tanh", "gelu"] = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False
    add_cross_attention: Literal[False] = False


def _shape(fields: Gpt2Fields) -> ModelConfig:
    return ModelConfig(
        name=CUSTOM,
        width=fields.n_embd,
        layers=fields.n_layer,
        heads=fields.n_head,
        kv_heads=fields.n_head,
        ffn_width=fields.n_inner or 4 * fields.n_embd,
        context=fields.n_positions,
        positions="learned",
        rope_base=10_000.0,
        norm_eps=fields.layer_norm_epsilon,
        tied_embeddings=fields.tie_word_embeddings,
        attention=AttentionConfig(qkv_bias=True, output_bias=True),
        norm=NormConfig(name="layer", bias=True),
        feed_forward=FeedForwardConfig(activation=ACTIVATIONS[fields.activation_function], bias=True),
    )


def _describe(config: ModelConfig) -> dict[str, Any]:
    names: dict[str, str] = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "activation_function": names.get(config.feed_forward.activation),
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "layer_norm_epsilon": config.norm_eps,
        "n_ctx": config.context,
        "n_embd": config.width,
        "n_head": config.heads,
        "n_inner": config.ffn_width,
        "n_layer": config.layers,
        "n_positions": config.context,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": config.tied_embeddings,
        "use_cache": True,
    }


def _links(config: ModelConfig, shapes: Shapes) -> list[Link]:
    width = config.width
    links = [
        same("embed_tokens.weight", "transformer.wte.weight"),
        same("embed_positions.weight", "transformer.wpe.weight"),
        same("norm.weight", "transformer.ln_f.weight"),
        same("norm.bias", "transformer.ln_f.bias"),
    ]
    if HEAD in shapes:
        links.append(same(HEAD, HEAD))
    for layer in range(config.layers):
        ours, theirs = f"layers.{layer}", f"transformer.h.{layer}"
        for kind in ("weight", "bias"):
            turned = kind == "weight"
            place = transposed if turned else same
            qkv = [f"{ours}.self_attn.{part}_proj.{kind}" for part in "qkv"]
            links += [
                same(f"{ours}.input_layernorm.{kind}", f"{theirs}.ln_1.{kind}"),
                joined(qkv, f"{theirs}.attn.c_attn.{kind}", [width] * 3, turned=turned),
                place(f"{ours}.self_attn.o_proj.{kind}", f"{theirs}.attn.c_proj.{kind}"),
                same(f"{ours}.post_attention_layernorm.{kind}", f"{theirs}.ln_2.{kind}"),
                place(f"{ours}.mlp.up_proj.{kind}", f"{theirs}.mlp.c_fc.{kind}"),
                place(f"{ours}.mlp.down_proj.{kind}", f"{theirs}.mlp.c_proj.{kind}"),
            ]
    return links


# Early checkpoints carry the causal mask.
MASKS = re.compile(r".*h\.\d+\.attn\.(bias|masked_bias)")

GPT2 = Family("gpt2", "GPT2LMHeadModel", Gpt2Fields, _shape, _describe, _links, lambda _: MASKS)
