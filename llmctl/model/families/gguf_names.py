"""What llama.cpp calls the tensors of a decoder, and how it lays them out."""

from __future__ import annotations

import re
from typing import Final

from llmctl.config.model import ModelConfig
from llmctl.model.families.links import Link, Shapes, interleaved, joined, same

EMBEDDING, OUTPUT, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
WHOLE: Final = {
    "embed_tokens": "token_embd",
    "embed_positions": "position_embd",
    "norm": "output_norm",
    "lm_head": "output",
}
OF_A_LAYER: Final = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.router": "ffn_gate_inp",
}
LAYER = re.compile(r"layers\.(\d+)\.(.+?)(?:\.(weight|bias))?")
TURNED = re.compile(r"layers\.\d+\.self_attn\.[qk]_proj\.(weight|bias)")
QUERY = re.compile(r"(layers\.(\d+)\.self_attn)\.[qkv]_proj\.(weight|bias)")
IDLE = re.compile(rf"{re.escape(ROPE_FACTORS)}|blk\.\d+\.attn_rot_embd(\.weight)?")


def their_name(name: str) -> str:
    """llama.cpp's name of our parameter.

    Raises:
        ValueError: it has none.
    """
    found = LAYER.fullmatch(name)
    if found is None:
        stem, _, kind = name.rpartition(".")
        if stem in WHOLE:
            return f"{WHOLE[stem]}.{kind}"
    elif found[2] in OF_A_LAYER:
        experts = "" if found[3] else "_exps"  # ours is a parameter of its own, without `.weight`
        return f"blk.{found[1]}.{OF_A_LAYER[found[2]]}{experts}.{found[3] or 'weight'}"
    raise ValueError(f"llama.cpp has no name for {name}")


def name_by_name(config: ModelConfig, shapes: Shapes) -> list[Link]:
    """The layout of Qwen: ours, by other names."""
    del config
    return [same(name, their_name(name)) for name in shapes]


def turned(config: ModelConfig, shapes: Shapes) -> list[Link]:
    """The layout of Llama: queries and keys with the rotary pairs side by side."""
    width = config.head_width
    return [
        interleaved(name, their_name(name), width, width) if TURNED.fullmatch(name) else same(name, their_name(name))
        for name in shapes
    ]


def fused(config: ModelConfig, shapes: Shapes) -> list[Link]:
    """The layout of GPT-2: query, key and value in one."""
    links, done = [], set()
    for name in shapes:
        found = QUERY.fullmatch(name)
        if found is None:
            links.append(same(name, their_name(name)))
        elif (found[1], found[3]) not in done:
            done.add((found[1], found[3]))
            parts = [f"{found[1]}.{part}_proj.{found[3]}" for part in "qkv"]
            links.append(joined(parts, f"blk.{found[2]}.attn_qkv.{found[3]}", [config.width] * 3))
    return links
