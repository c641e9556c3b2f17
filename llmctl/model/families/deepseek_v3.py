"""DeepSeek-V3 (arXiv:2412.19437): latent attention, many small experts, a shared one, a balancing bias."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from pydantic import Field

from llmctl.config.blocks import LatentConfig, YarnScaling
from llmctl.config.model import ModelConfig
from llmctl.model.families.family import ROTARY_TABLES, DecoderFields, Family
from llmctl.model.families.links import Link, Shapes, interleaved, same
from llmctl.model.families.llama import decoder_json
from llmctl.model.families.mixtures import QWEN_NAMES, expert_links
from llmctl.model.families.rope_json import rope_json, sharpening

INNER_EPS = 1e-6  # of the norms within latent attention, whatever rms_norm_eps says


class DeepseekV3Fields(DecoderFields):
    """`config.json` of DeepSeek-V3. `head_dim` is ignored: the three widths of a head say more."""

    max_position_embeddings: int = 4096
    moe_intermediate_size: int = 2048
    n_routed_experts: int = Field(default=256, ge=1)
    n_shared_experts: int = Field(default=1, ge=1)
    num_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    first_k_dense_replace: int = 3
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    scoring_func: Literal["sigmoid"] = "sigmoid"
    topk_method: Literal["noaux_tc"] = "noaux_tc"
    moe_layer_freq: Literal[1] = 1
    q_lora_rank: int | None = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    attention_bias: Literal[False] = False
    rope_interleave: Literal[True] = True


def _shape(fields: DeepseekV3Fields) -> ModelConfig:
    if fields.rms_norm_eps != INNER_EPS:
        raise ValueError(f"rms_norm_eps is {fields.rms_norm_eps}, but the norms of the latent vectors have {INNER_EPS}")
    head_width = fields.qk_nope_head_dim + fields.qk_rope_head_dim
    return fields.decoder(
        head_width=head_width,
        attention={"scale": _attention_scale(fields, head_width)},
        latent={
            "kv_rank": fields.kv_lora_rank,
            "query_rank": fields.q_lora_rank,
            "rope_width": fields.qk_rope_head_dim,
            "value_width": fields.v_head_dim,
        },
        experts={
            "count": fields.n_routed_experts,
            "top": fields.num_experts_per_tok,
            "ffn_width": fields.moe_intermediate_size,
            "shared": fields.n_shared_experts,
            "first_dense": fields.first_k_dense_replace,
            "router": "sigmoid",
            "normalise": fields.norm_topk_prob,
            "scale": fields.routed_scaling_factor,
            "groups": fields.n_group,
            "groups_kept": fields.topk_group,
            "balance": "bias",
        },
    )


def _attention_scale(fields: DeepseekV3Fields, head_width: int) -> float | None:
    """YaRN's sharpening goes into the scores, squared, by as much as `mscale_all_dim` says."""
    rope, scaling = fields.rope_scaling or fields.rope_parameters, fields.scaling
    if rope is None or scaling is None or not rope.mscale_all_dim:
        return None
    sharpened = sharpening(scaling.factor, rope.mscale_all_dim)
    return float(head_width**-0.5 * sharpened**2)


def _describe(config: ModelConfig) -> dict[str, Any]:
    latent, experts = config.latent, config.experts
    if latent is None or experts is None:
        raise ValueError("a DeepSeek-V3 has latent attention and experts")
    return {
        **decoder_json(config),
        **rope_json(config, **_sharpening_json(config)),
        "attention_bias": False,
        "first_k_dense_replace": experts.first_dense,
        "head_dim": latent.rope_width,
        "kv_lora_rank": latent.kv_rank,
        "moe_intermediate_size": experts.ffn_width,
        "moe_layer_freq": 1,
        "n_group": experts.groups,
        "n_routed_experts": experts.count,
        "n_shared_experts": experts.shared,
        "norm_topk_prob": experts.normalise,
        "num_experts_per_tok": experts.top,
        "num_nextn_predict_layers": 0,
        "q_lora_rank": latent.query_rank,
        "qk_nope_head_dim": config.head_width - latent.rope_width,
        "qk_rope_head_dim": latent.rope_width,
        "rope_interleave": True,
        "routed_scaling_factor": experts.scale,
        "scoring_func": experts.router,
        "topk_group": experts.groups_kept,
        "topk_method": "noaux_tc",
        "v_head_dim": latent.value_width,
    }


def _sharpening_json(config: ModelConfig) -> dict[str, float]:
    """The inverse of `_attention_scale`."""
    scale, scaling = config.attention.scale, config.rope_scaling
    if scale is None or not isinstance(scaling, YarnScaling):
        return {}
    whole = (math.sqrt(scale * config.head_width**0.5) - 1) / (0.1 * math.log(scaling.factor))
    rounded = round(whole, 9)
    # Where cosine and sine stay as they are, mscale says so to readers that do not know attention_factor.
    return {"mscale_all_dim": rounded, **({"mscale": rounded} if scaling.attention_factor == 1.0 else {})}


def _links(config: ModelConfig, shapes: Shapes) -> list[Link]:
    assert config.latent is not None
    return [_latent_link(link, config, config.latent) for link in expert_links(shapes, "mlp", QWEN_NAMES)]


QUERY_PARTS = {"q_proj.0": "q_a_proj", "q_proj.1": "q_a_layernorm", "q_proj.2": "q_b_proj"}


def _latent_link(link: Link, config: ModelConfig, latent: LatentConfig) -> Link:
    """The names of the query's parts, and rotary columns as pairs side by side."""
    ours, theirs = link.ours[0], link.theirs[0]
    theirs = theirs.replace(".mlp.shared.", ".mlp.shared_experts.")
    theirs = theirs.replace(".mlp.balance_bias", ".mlp.gate.e_score_correction_bias")
    for part, name in QUERY_PARTS.items():
        theirs = theirs.replace(f".self_attn.{part}.", f".self_attn.{name}.")
    last = "q_proj" if latent.query_rank is None else "q_proj.2"
    if ours.endswith(f".self_attn.{last}.weight"):
        return interleaved(ours, theirs, config.head_width, latent.rope_width)
    if ours.endswith(".kv_a_proj_with_mqa.weight"):
        return interleaved(ours, theirs, latent.kv_rank + latent.rope_width, latent.rope_width)
    return link if len(link.theirs) > 1 else same(ours, theirs)


def _idle(config: ModelConfig) -> re.Pattern[str]:
    """The modules that predict further tokens stand behind the last layer."""
    behind = "|".join(str(config.layers + number) for number in range(4))
    return re.compile(rf"model\.layers\.(?:{behind})\..*|{ROTARY_TABLES.pattern}")


DEEPSEEK_V3 = Family("deepseek_v3", "DeepseekV3ForCausalLM", DeepseekV3Fields, _shape, _describe, _links, _idle)
