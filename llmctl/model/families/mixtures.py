"""Mixtral (Jiang et al. 2024, arXiv:2401.04088) and Qwen3's mixture of experts (arXiv:2505.09388)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from llmctl.config.model import ModelConfig
from llmctl.model.families.family import DecoderFields, Family
from llmctl.model.families.links import Link, Shapes, same, stacked
from llmctl.model.families.llama import decoder_json, their_name
from llmctl.model.families.qwen import Qwen3Fields, qwen3_describe

MIXTRAL_NAMES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
QWEN_NAMES = {name: name for name in MIXTRAL_NAMES}
EXPERTS = re.compile(r"(layers\.\d+\.mlp)\.(gate_proj|up_proj|down_proj)")


class MixtralFields(DecoderFields):
    """`config.json` of Mixtral."""

    default_rope_base: ClassVar[float] = 1e6

    max_position_embeddings: int = 131_072
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None
    num_local_experts: int = Field(default=8, ge=1)
    num_experts_per_tok: int = 2


class Qwen3MoeFields(Qwen3Fields):
    """`config.json` of Qwen3 with experts."""

    num_experts: int | None = Field(default=None, ge=1)
    num_local_experts: int = Field(default=128, ge=1)
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 768
    norm_topk_prob: bool = False
    decoder_sparse_step: Literal[1] = 1
    mlp_only_layers: list[int] = Field(default=[])


def _mixtral_shape(fields: MixtralFields) -> ModelConfig:
    return fields.decoder(
        attention={"window": fields.sliding_window},
        experts={
            "count": fields.num_local_experts,
            "top": fields.num_experts_per_tok,
            "ffn_width": fields.intermediate_size,
        },
    )


def _mixtral_describe(config: ModelConfig) -> dict[str, Any]:
    if config.experts is None:
        raise ValueError("a Mixtral has experts")
    return {
        **decoder_json(config),
        "intermediate_size": config.experts.ffn_width,
        "num_experts_per_tok": config.experts.top,
        "num_local_experts": config.experts.count,
        "sliding_window": config.attention.window,
    }


def _qwen_shape(fields: Qwen3MoeFields) -> ModelConfig:
    dense = fields.mlp_only_layers
    if dense != list(range(len(dense))):
        raise ValueError("mlp_only_layers must be the first layers: 0, 1, …")
    bias = fields.attention_bias
    return fields.decoder(
        attention={"qk_norm": True, "qkv_bias": bias, "output_bias": bias, **fields.windows()},
        experts={
            "count": fields.num_experts or fields.num_local_experts,
            "top": fields.num_experts_per_tok,
            "ffn_width": fields.moe_intermediate_size,
            "normalise": fields.norm_topk_prob,
            "first_dense": len(dense),
        },
    )


def _qwen_describe(config: ModelConfig) -> dict[str, Any]:
    experts = config.experts
    if experts is None:
        raise ValueError("a mixture has experts")
    return {
        **qwen3_describe(config),
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(range(experts.first_dense)),
        "moe_intermediate_size": experts.ffn_width,
        "norm_topk_prob": experts.normalise,
        "num_experts": experts.count,
        "num_experts_per_tok": experts.top,
        "num_local_experts": experts.count,
    }


def expert_links(shapes: Shapes, room: str, names: Mapping[str, str]) -> list[Link]:
    """Links of a Llama with experts.

    Args:
        shapes: of ours.
        room: what they call the feed-forward layer.
        names: of the matrices of an expert.
    """
    links = []
    for name, shape in shapes.items():
        found = EXPERTS.fullmatch(name)
        theirs = their_name(name)
        if found is not None:
            layer = their_name(found[1]).removesuffix("mlp") + room
            links.append(stacked(name, [f"{layer}.experts.{i}.{names[found[2]]}.weight" for i in range(shape[0])]))
        elif name.endswith(".mlp.router.weight"):
            links.append(same(name, theirs.replace(".mlp.router.", f".{room}.gate.")))
        else:
            links.append(same(name, theirs))
    return links


def _mixtral_links(config: ModelConfig, shapes: Shapes) -> list[Link]:
    del config
    return expert_links(shapes, "block_sparse_moe", MIXTRAL_NAMES)


def _qwen_links(config: ModelConfig, shapes: Shapes) -> list[Link]:
    del config
    return expert_links(shapes, "mlp", QWEN_NAMES)


MIXTRAL = Family("mixtral", "MixtralForCausalLM", MixtralFields, _mixtral_shape, _mixtral_describe, _mixtral_links)
QWEN3_MOE = Family("qwen3_moe", "Qwen3MoeForCausalLM", Qwen3MoeFields, _qwen_shape, _qwen_describe, _qwen_links)
