"""The one model: a Llama-style decoder, read from top to bottom.

Shapes: B rows, T positions, D residual width, H query heads, K key/value heads, E head width, F inner width
of the feed-forward layer, V vocabulary. Parameters bear the names of Hugging Face's Llama, so that a
checkpoint needs no table of names.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmctl.config.model import ModelConfig
from llmctl.model.attention import Attend


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in float32 inside (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D] of the same dtype."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)  # one kernel for sqrt(sum(x^2))
        scale = torch.rsqrt(norm.square() / x.shape[-1] + self.eps)
        return (x * scale).to(x.dtype) * self.weight


def rotary_angles(positions: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine of position x frequency, frequency i = base^(-2i / E) (Su et al. 2021, arXiv:2104.09864).

    Computed at each call, in float32: a stored table would be rounded when the model is cast to bfloat16.

    Args:
        positions: int [B,T].
        head_width: E.
        base: theta.

    Returns:
        Two float32 tensors [B,T,1,E]: (cos, cos) and (-sin, sin), as `rotate` needs them.
    """
    exponents = torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32) / head_width
    angles = positions[..., None, None].float() * (1.0 / base**exponents)  # [B,T,1,E/2]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (x[i], x[i + E/2]) by their angles, the rotate-half layout of Hugging Face's Llama.

    Args:
        x: [B,T,H,E].
        angles: from `rotary_angles`.
    """
    cos, signed_sin = angles
    swapped = x.roll(x.shape[-1] // 2, dims=-1)  # (right half, left half)
    return torch.addcmul(x * cos, swapped, signed_sin).to(x.dtype)


class Attention(nn.Module):
    """Project to heads, turn by position, attend, project back. How to attend is the caller's (`Attend`)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, E = config.width, config.head_width
        self.head_width = E
        self.q_proj = nn.Linear(D, config.heads * E, bias=False)
        self.k_proj = nn.Linear(D, config.kv_heads * E, bias=False)
        self.v_proj = nn.Linear(D, config.kv_heads * E, bias=False)
        self.o_proj = nn.Linear(config.heads * E, D, bias=False)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], layer: int, attend: Attend) -> Tensor:
        """[B,T,D] to [B,T,D]."""
        heads = (*x.shape[:-1], -1, self.head_width)
        q = rotate(self.q_proj(x).view(heads), angles)  # [B,T,H,E]
        k = rotate(self.k_proj(x).view(heads), angles)  # [B,T,K,E]
        v = self.v_proj(x).view(heads)  # [B,T,K,E]
        mixed: Tensor = self.o_proj(attend(layer, q, k, v).flatten(-2))
        return mixed


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, F = config.width, config.ffn_width
        self.gate_proj = nn.Linear(D, F, bias=False)
        self.up_proj = nn.Linear(D, F, bias=False)
        self.down_proj = nn.Linear(F, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,D] to [B,T,D]."""
        mixed: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return mixed


class Block(nn.Module):
    """Attention and feed-forward, each normalised before and added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], layer: int, attend: Attend) -> Tensor:
        """[B,T,D] to [B,T,D]."""
        x = x + self.self_attn(self.input_layernorm(x), angles, layer, attend)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x  # noqa: RET504 (one line for each residual addition)


class Transformer(nn.Module):
    """The decoder. `forward` gives hidden states; `logits` turns the ones that matter into scores.

    Attributes:
        config: its shape.
        vocab_size: V.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.embed_tokens = nn.Embedding(vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.lm_head = None if config.tied_embeddings else nn.Linear(config.width, vocab_size, bias=False)

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states after the final norm.

        Args:
            tokens: int64 [B,T].
            positions: int64 [B,T], counted from 0 in each document.
            attend: what each position sees.

        Returns:
            [B,T,D].
        """
        x = self.embed_tokens(tokens)  # [B,T,D]
        angles = rotary_angles(positions, self.config.head_width, self.config.rope_base)
        for index, block in enumerate(self.layers):
            x = block(x, angles, index, attend)
        hidden: Tensor = self.norm(x)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: [...,D] to [...,V], in the dtype of the matrix product."""
        return functional.linear(hidden, self.output_weight)

    @property
    def output_weight(self) -> Tensor:
        """The output matrix [V,D]; the input embedding itself where the two are tied."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the parameters are kept in."""
        return self.embed_tokens.weight.dtype

    def parameters_count(self) -> int:
        """Number of parameters; tied ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Set every weight from `seed`, the same on every device.

        Matrices and embeddings are normal with deviation sqrt(2 / (5 D)) (Nguyen and Salazar 2019,
        arXiv:1910.05895), which is 0.023 at D = 768 and grows as models get narrower. Those that write to the
        residual stream are divided by sqrt(2 x layers), one for each addition to it, so that the stream's
        variance does not grow with depth (Radford et al. 2019, GPT-2, section 2.3). Norms are 1.
        """
        deviation = math.sqrt(2 / (5 * self.config.width))
        into_residual = deviation / math.sqrt(2 * self.config.layers)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
                continue
            spread = into_residual if name.endswith(("o_proj.weight", "down_proj.weight")) else deviation
            drawn = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, spread, generator=generator)
            parameter.copy_(drawn)


def flops_per_token(config: ModelConfig, vocab_size: int, seq_len: int) -> int:
    """Floating-point operations of forward and backward for one token of a row of `seq_len`.

    6 for each weight of a matrix product, and 12 x layers x heads x head width x seq_len for attention
    (Chowdhery et al. 2022, PaLM, appendix B). The embedding look-up is no product; the output matrix is one.
    """
    D, E = config.width, config.head_width
    projections = D * E * (2 * config.heads + 2 * config.kv_heads)
    weights = config.layers * (projections + 3 * D * config.ffn_width) + vocab_size * D
    return 6 * weights + 12 * config.layers * config.heads * E * seq_len
