"""Rotary scalings against transformers and their formulas, slopes and sinusoids against their papers."""

import math

import pytest
import torch

from llmctl.config.blocks import LinearScaling, Llama3Scaling, NtkScaling, YarnScaling
from llmctl.model.positions import alibi_slopes, rotary_angles, rotary_frequencies, sinusoids

WIDTH, BASE = 64, 10_000.0


def plain(pair: int) -> float:
    return BASE ** (-2 * pair / WIDTH)


def reference(name: str, **fields: object) -> tuple[torch.Tensor, float]:
    """What transformers computes."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=2 * WIDTH,
        num_attention_heads=2,
        max_position_embeddings=65_536,
        rope_parameters={"rope_type": name, "rope_theta": BASE, **fields},
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[name](config, torch.device("cpu"))
    return frequencies, factor


@pytest.mark.parametrize(("factor", "beta_fast", "original"), [(4.0, 32.0, 4096), (16.0, 32.0, 2048), (40.0, 8.0, 512)])
def test_yarn_is_that_of_transformers(factor: float, beta_fast: float, original: int) -> None:
    ours, ours_factor = rotary_frequencies(
        WIDTH, BASE, YarnScaling(factor=factor, beta_fast=beta_fast, original_context=original)
    )
    theirs, their_factor = reference(
        "yarn", factor=factor, beta_fast=beta_fast, original_max_position_embeddings=original
    )
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=0)
    assert ours_factor == pytest.approx(their_factor) == pytest.approx(0.1 * math.log(factor) + 1)


def test_llama3_is_that_of_transformers() -> None:
    ours, factor = rotary_frequencies(WIDTH, BASE, Llama3Scaling(factor=8, original_context=8192))
    theirs, _ = reference(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=0)
    assert factor == 1.0
    assert ours[0] == plain(0)  # kept
    assert ours[-1].item() == pytest.approx(plain(31) / 8)  # divided


def test_linear_divides_every_frequency_and_ntk_only_the_slowest_by_the_factor() -> None:
    linear, _ = rotary_frequencies(WIDTH, BASE, LinearScaling(factor=4))
    ntk, _ = rotary_frequencies(WIDTH, BASE, NtkScaling(factor=4))
    for pair in range(WIDTH // 2):
        assert linear[pair].item() == pytest.approx(plain(pair) / 4)
        assert ntk[pair].item() == pytest.approx(plain(pair) * 4 ** (-2 * pair / (WIDTH - 2)), rel=1e-5)
    assert ntk[0] == 1.0
    assert ntk[-1].item() == pytest.approx(plain(31) / 4, rel=1e-5)


def test_the_yarn_factor_multiplies_cosine_and_sine() -> None:
    positions = torch.tensor([[0, 3]])
    scaling = YarnScaling(factor=4, original_context=4096, attention_factor=1.5)
    cos, signed_sin = rotary_angles(positions, WIDTH, BASE, scaling)
    assert torch.allclose(cos.square() + signed_sin.square(), torch.full_like(cos, 2.25))


def test_alibi_slopes_are_those_of_the_paper() -> None:
    assert alibi_slopes(8) == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    assert alibi_slopes(16) == pytest.approx([2 ** (-i / 2) for i in range(1, 17)])
    assert alibi_slopes(12) == pytest.approx([*alibi_slopes(8), 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])
    assert alibi_slopes(1) == [1 / 256]


def test_sinusoids_are_those_of_the_paper() -> None:
    table = sinusoids(torch.tensor([[0, 7]]), 6)
    for index in range(3):
        angle = 7 / 10_000 ** (2 * index / 6)
        assert table[0, 1, 2 * index].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[0, 1, 2 * index + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    assert table[0, 0].tolist() == [0, 1, 0, 1, 0, 1]
