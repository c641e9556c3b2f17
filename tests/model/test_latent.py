"""Latent attention against its equations, one head and one position after another."""

from typing import Any

import pytest
import torch
from torch import Tensor

from llmctl.config.model import ModelConfig
from llmctl.inference.cache import KVCache, Span
from llmctl.model.attention import packed
from llmctl.model.latent import LatentAttention
from llmctl.model.positions import rotary_angles, rotate

SHAPE: dict[str, Any] = {
    "name": "nano",
    "width": 12,
    "layers": 1,
    "heads": 3,
    "kv_heads": 3,
    "head_width": 10,
    "latent": {"kv_rank": 8, "rope_width": 4, "value_width": 5},
}
QUERY_RANK = {"latent": {**SHAPE["latent"], "query_rank": 7}}


def made(changes: dict[str, Any]) -> tuple[ModelConfig, LatentAttention]:
    config = ModelConfig.model_validate({**SHAPE, **changes})
    assert config.latent is not None
    layer = LatentAttention(config, config.latent, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5 + 0.1)
    return config, layer


def naive(config: ModelConfig, layer: LatentAttention, x: Tensor) -> Tensor:
    """Equations 37 to 47 of arXiv:2405.04434 for one row [T,D], with an RMSNorm on each compressed vector."""
    latent, T = config.latent, x.shape[0]
    assert latent is not None
    N, P, R, G = config.head_width - latent.rope_width, latent.rope_width, latent.kv_rank, latent.value_width
    cos, sin = rotary_angles(torch.arange(T)[None], P, config.rope_base)

    def turned(vector: Tensor, place: int) -> Tensor:
        return rotate(vector[None, None, None], (cos[:, place : place + 1], sin[:, place : place + 1]))[0, 0, 0]

    queries = layer.q_proj(x)
    joint = layer.kv_a_proj_with_mqa(x)
    compressed = layer.kv_a_layernorm(joint[:, :R])
    made_of_it = layer.kv_b_proj(compressed)
    heads = []
    for head in range(config.heads):
        q = queries[:, head * (N + P) : (head + 1) * (N + P)]
        k_plain, v = made_of_it[:, head * (N + G) : (head + 1) * (N + G)].split([N, G], dim=-1)
        out = torch.zeros(T, G)
        for place in range(T):
            q_turned = turned(q[place, N:], place)
            scores = torch.stack(
                [
                    (q[place, :N] @ k_plain[before] + q_turned @ turned(joint[before, R:], before)) / (N + P) ** 0.5
                    for before in range(place + 1)
                ]
            )
            out[place] = scores.softmax(0) @ v[: place + 1]
        heads.append(out)
    return layer.o_proj(torch.cat(heads, dim=-1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("changes", [{}, QUERY_RANK], ids=["plain queries", "compressed queries"])
def test_it_equals_its_equations(changes: dict[str, Any]) -> None:
    config, layer = made(changes)
    T = 7
    x = torch.randn(2, T, config.width, generator=torch.Generator().manual_seed(2))
    angles = rotary_angles(torch.arange(T).expand(2, T), 4, config.rope_base)
    got = layer(x, angles, 0, packed(torch.zeros(2, T, dtype=torch.int64)))
    for row in range(2):
        assert torch.allclose(got[row], naive(config, layer, x[row]), atol=1e-5)


def test_what_is_cached_is_the_compressed_vector_and_one_rotary_key() -> None:
    config, layer = made(QUERY_RANK)
    cache = KVCache(config, 1, torch.float32, torch.device("cpu"), 6)
    assert cache.data.shape == (1, 1, 6, 1, 8 + 4)
    x = torch.randn(1, 6, config.width, generator=torch.Generator().manual_seed(2))
    angles = rotary_angles(torch.arange(6)[None], 4, config.rope_base)
    with torch.no_grad():
        absorbed = layer(x, angles, 0, cache.attend([Span([0], 0, 6)]))
        assert torch.allclose(absorbed[0], naive(config, layer, x[0]), atol=1e-5)
