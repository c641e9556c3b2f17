"""Named shapes, from the tables and configuration files that their makers published.

Parameter counts are in docs/models.md and held by tests/model/test_presets.py, each with its vocabulary size.
"""

from __future__ import annotations

import math
from typing import Any, Final

Shape = dict[str, Any]


def _llama(
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    ffn_width: int,
    *,
    context: int,
    tied: bool,
    rope_base: float = 10_000.0,
    **more: Any,
) -> Shape:
    """A decoder in the manner of Llama; `more` are the fields in which it differs."""
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
        **more,
    }


def _gpt(width: int, layers: int, heads: int, context: int) -> Shape:
    """GPT-2 and GPT-3: learned positions, LayerNorm, GELU, biases everywhere, a feed-forward layer of 4 x width."""
    return _llama(
        width,
        layers,
        heads,
        heads,
        4 * width,
        context=context,
        tied=True,
        positions="learned",
        attention={"qkv_bias": True, "output_bias": True},
        norm={"name": "layer", "bias": True},
        feed_forward={"activation": "gelu_tanh", "bias": True},
    )


def _llama3(width: int, layers: int, heads: int, ffn_width: int, *, stretch: float | None, tied: bool = False) -> Shape:
    """Llama 3 (context 8 192) and, with a factor of `stretch`, Llama 3.1 and 3.2 (131 072)."""
    scaling = {"name": "llama3", "factor": stretch, "original_context": 8192}
    context = 131_072 if stretch else 8192
    more = {"rope_scaling": scaling} if stretch else {}
    return _llama(width, layers, heads, 8, ffn_width, context=context, tied=tied, rope_base=500_000.0, **more)


def _qwen2(width: int, layers: int, heads: int, kv_heads: int, ffn_width: int, *, tied: bool) -> Shape:
    """Qwen2: biases of query, key and value."""
    more = {"norm_eps": 1e-6, "attention": {"qkv_bias": True}}
    return _llama(width, layers, heads, kv_heads, ffn_width, context=131_072, tied=tied, rope_base=1e6, **more)


def _qwen3(width: int, layers: int, heads: int, ffn_width: int, *, tied: bool, kv_heads: int = 8, **more: Any) -> Shape:
    """Qwen3: heads of width 128 whatever the width, normalised queries and keys."""
    more = {"norm_eps": 1e-6, "head_width": 128, "attention": {"qk_norm": True}, **more}
    return _llama(width, layers, heads, kv_heads, ffn_width, context=40_960, tied=tied, rope_base=1e6, **more)


def _deepseek_v3() -> Shape:
    """Latent attention, 256 fine-grained experts of which 8 in 4 of 8 groups are chosen, and a shared one."""
    stretch = 40.0
    sharpened = 0.1 * math.log(stretch) + 1.0  # its YaRN multiplies the scores by the square, not cosine and sine
    return _llama(
        7168,
        61,
        128,
        128,
        18432,
        context=163_840,
        tied=False,
        norm_eps=1e-6,
        head_width=192,
        latent={"query_rank": 1536, "kv_rank": 512, "rope_width": 64, "value_width": 128},
        attention={"scale": 192**-0.5 * sharpened**2},
        rope_scaling={"name": "yarn", "factor": stretch, "original_context": 4096, "attention_factor": 1.0},
        experts={
            "count": 256,
            "top": 8,
            "ffn_width": 2048,
            "shared": 1,
            "first_dense": 3,
            "router": "sigmoid",
            "scale": 2.5,
            "groups": 8,
            "groups_kept": 4,
            "balance": "bias",
        },
    )


PRESETS: Final[dict[str, Shape]] = {
    # Of our own making or after a published one; small ones come first. In brackets the vocabulary of the count.
    "nano": _llama(64, 2, 4, 2, 176, context=512, tied=True),  # 0.35 M (4 096); for tests
    "tiny": _llama(192, 3, 6, 2, 512, context=1024, tied=True),  # 2.0 M (4 096); minutes on two CPU cores
    "small": _llama(320, 6, 5, 5, 896, context=1024, tied=True),  # 10.2 M (8 192); an hour on a CPU
    "base": _llama(768, 12, 12, 12, 2048, context=1024, tied=True),  # 124 M (50 304); depth and width of GPT-2 small
    "350m": _llama(960, 32, 15, 5, 2560, context=2048, tied=True),  # 362 M (49 152); SmolLM-360M
    "1b": _llama(2048, 22, 32, 4, 5632, context=2048, tied=False),  # 1.10 B (32 000); TinyLlama-1.1B
    "7b": _llama(4096, 32, 32, 32, 11008, context=4096, tied=False),  # 6.74 B (32 000); Llama 2 7B
    # Radford et al. 2019, table 2; the widths of heads from the released configuration files.
    "gpt2": _gpt(768, 12, 12, 1024),
    "gpt2-medium": _gpt(1024, 24, 16, 1024),
    "gpt2-large": _gpt(1280, 36, 20, 1024),
    "gpt2-xl": _gpt(1600, 48, 25, 1024),
    # Brown et al. 2020, arXiv:2005.14165, table 2.1. Its layers alternate dense and sparse attention; here all are
    # dense. The table's 24 heads of 128 do not fit the 1.3B model's width of 2048, nor does a width of 5140 fit 40
    # heads of 128: 16 heads and 5120 do.
    "gpt3-125m": _gpt(768, 12, 12, 2048),
    "gpt3-350m": _gpt(1024, 24, 16, 2048),
    "gpt3-760m": _gpt(1536, 24, 16, 2048),
    "gpt3-1.3b": _gpt(2048, 24, 16, 2048),
    "gpt3-2.7b": _gpt(2560, 32, 32, 2048),
    "gpt3-6.7b": _gpt(4096, 32, 32, 2048),
    "gpt3-13b": _gpt(5120, 40, 40, 2048),
    "gpt3-175b": _gpt(12288, 96, 96, 2048),
    # Touvron et al. 2023, arXiv:2302.13971, table 2 (the 33B model) and arXiv:2307.09288.
    "llama-30b": _llama(6656, 60, 52, 52, 17920, context=2048, tied=False, norm_eps=1e-6),
    "llama2-7b": _llama(4096, 32, 32, 32, 11008, context=4096, tied=False),
    "llama2-13b": _llama(5120, 40, 40, 40, 13824, context=4096, tied=False),
    "llama2-70b": _llama(8192, 80, 64, 8, 28672, context=4096, tied=False),
    # Grattafiori et al. 2024, arXiv:2407.21783, table 3, and the released configuration files.
    "llama3-8b": _llama3(4096, 32, 32, 14336, stretch=None),
    "llama3-70b": _llama3(8192, 80, 64, 28672, stretch=None),
    "llama3.1-8b": _llama3(4096, 32, 32, 14336, stretch=8.0),
    "llama3.1-70b": _llama3(8192, 80, 64, 28672, stretch=8.0),
    "llama3.1-405b": _llama3(16384, 126, 128, 53248, stretch=8.0),
    "llama3.2-1b": _llama3(2048, 16, 32, 8192, stretch=32.0, tied=True),
    "llama3.2-3b": _llama3(3072, 28, 24, 8192, stretch=32.0, tied=True),
    # Jiang et al. 2023, arXiv:2310.06825, table 1: version 0.1, with its window.
    "mistral-7b": _llama(4096, 32, 32, 8, 14336, context=32_768, tied=False, attention={"window": 4096}),
    # Yang et al. 2024, arXiv:2407.10671, table 1.
    "qwen2-0.5b": _qwen2(896, 24, 14, 2, 4864, tied=True),
    "qwen2-1.5b": _qwen2(1536, 28, 12, 2, 8960, tied=True),
    "qwen2-7b": _qwen2(3584, 28, 28, 4, 18944, tied=False),
    "qwen2-72b": _qwen2(8192, 80, 64, 8, 29568, tied=False),
    # Yang et al. 2025, arXiv:2505.09388, table 1, and the released configuration files.
    "qwen3-0.6b": _qwen3(1024, 28, 16, 3072, tied=True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 6144, tied=True),
    "qwen3-4b": _qwen3(2560, 36, 32, 9728, tied=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 12288, tied=False),
    "qwen3-14b": _qwen3(5120, 40, 40, 17408, tied=False),
    "qwen3-32b": _qwen3(5120, 64, 64, 25600, tied=False),
    "qwen3-30b-a3b": _qwen3(
        2048, 48, 32, 6144, tied=False, kv_heads=4, experts={"count": 128, "top": 8, "ffn_width": 768}
    ),
    # Jiang et al. 2024, arXiv:2401.04088, table 1.
    "mixtral-8x7b": _llama(
        4096,
        32,
        32,
        8,
        14336,
        context=32_768,
        tied=False,
        rope_base=1e6,
        experts={"count": 8, "top": 2, "ffn_width": 14336},
    ),
    # DeepSeek-AI 2024, arXiv:2412.19437, section 4.2, and the released configuration file; without the layer that
    # predicts a second token.
    "deepseek-v3": _deepseek_v3(),
    # Ben Allal et al. 2025, arXiv:2502.02737, and the released configuration files.
    "smollm2-135m": _llama(576, 30, 9, 3, 1536, context=8192, tied=True, rope_base=100_000.0),
    "smollm2-360m": _llama(960, 32, 15, 5, 2560, context=8192, tied=True, rope_base=100_000.0),
    "smollm2-1.7b": _llama(2048, 24, 32, 32, 8192, context=8192, tied=True, rope_base=130_000.0),
}
