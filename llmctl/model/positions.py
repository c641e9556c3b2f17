"""How a token knows its place: rotary angles and their scalings, linear biases, fixed tables."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from llmctl.config.blocks import Llama3Scaling, NtkScaling, RopeScaling, YarnScaling
from llmctl.model import native

Angles = tuple[Tensor, Tensor]
Turn = Callable[[Tensor], Tensor]
"""Gives queries or keys [B,T,H,E] their positions; the identity where positions come otherwise."""


def rotary_angles(positions: Tensor, head_width: int, base: float, scaling: RopeScaling | None = None) -> Angles:
    """Cosine and signed sine of position x frequency, frequency i = base^(-2i / E) (Su et al. 2021, arXiv:2104.09864).

    Computed at each call, in float32: a stored table would be rounded when the model is cast to bfloat16.

    Args:
        positions: int [B,T].
        head_width: E.
        base: theta.
        scaling: for a context longer than the one that the frequencies were learned at.

    Returns:
        Two float32 tensors [B,T,1,E]: (cos, cos) and (-sin, sin), as `rotate` needs them.
    """
    frequencies, factor = rotary_frequencies(head_width, base, scaling, positions.device)
    angles = positions[..., None, None].float() * frequencies  # [B,T,1,E/2]
    cos, sin = angles.cos(), angles.sin()
    if factor != 1.0:
        cos, sin = cos * factor, sin * factor
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotary_frequencies(
    head_width: int, base: float, scaling: RopeScaling | None, device: torch.device | None = None
) -> tuple[Tensor, float]:
    """Radians per position of each pair, float32 [E/2], and the factor of cosine and sine."""
    if isinstance(scaling, NtkScaling):
        base = base * scaling.factor ** (head_width / max(1, head_width - 2))
    exponents = torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width
    plain = 1.0 / base**exponents
    if scaling is None or isinstance(scaling, NtkScaling):
        return plain, 1.0
    if isinstance(scaling, YarnScaling):
        return _yarn(plain, head_width, base, scaling)
    if isinstance(scaling, Llama3Scaling):
        return _llama3(plain, scaling), 1.0
    return plain / scaling.factor, 1.0


def _yarn(plain: Tensor, head_width: int, base: float, scaling: YarnScaling) -> tuple[Tensor, float]:
    """Section 3.2 of arXiv:2309.00071: between pairs `low` and `high` a ramp from kept to divided frequencies."""

    def pair_that_turns(times: float) -> float:
        """The (fractional) pair that turns so often within the original context."""
        return head_width * math.log(scaling.original_context / (times * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(scaling.beta_slow)), head_width - 1)
    pairs = torch.arange(head_width // 2, device=plain.device, dtype=torch.float32)
    divided = ((pairs - low) / max(high - low, 1e-3)).clamp(0, 1)  # 0: kept, 1: divided
    factor = scaling.attention_factor
    if factor is None:
        factor = 0.1 * math.log(scaling.factor) + 1.0
    return plain / scaling.factor * divided + plain * (1 - divided), factor


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Kept where the original context holds many waves, divided where it holds few, mixed between."""
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    waves = scaling.original_context * plain / (2 * math.pi)  # in the original context
    kept = ((waves - low) / (high - low)).clamp(0, 1)
    return plain * kept + plain / scaling.factor * (1 - kept)


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Turn the pairs (x[i], x[i + E/2]) by their angles, the rotate-half layout of Hugging Face's Llama.

    Args:
        x: [B,T,H,E].
        angles: from `rotary_angles`.
    """
    cos, signed_sin = angles
    if native.serves(x) and x.shape[:-2] == cos.shape[:-2]:
        return native.turned(x, cos, signed_sin)
    swapped = x.roll(x.shape[-1] // 2, dims=-1)  # (right half, left half)
    return torch.addcmul(x * cos, swapped, signed_sin).to(x.dtype)


def alibi_slopes(heads: int) -> list[float]:
    """What each head's score loses for each token of distance (Press et al. 2022, arXiv:2108.12409, section 3).

    For n heads, a power of two, 2^(-8 i / n) for i = 1 … n; for other numbers those of the next lower power, and then
    every second one of the next higher, as the authors' code has it.
    """
    lower = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * i / lower) for i in range(1, lower + 1)]
    between = [2.0 ** (-4 * i / lower) for i in range(1, 2 * lower, 2)]
    return slopes + between[: heads - lower]


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sine in even and cosine in odd places of position / 10000^(2i / D) (Vaswani et al. 2017, section 3.5).

    Args:
        positions: int [B,T].
        width: D, even.

    Returns:
        float32 [B,T,D].
    """
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    angles = positions[..., None].float() / 10_000.0**exponents  # [B,T,D/2]
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
