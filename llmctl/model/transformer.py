"""The one model: a decoder, by its configuration a Llama or one of its relatives, read from top to bottom.

Shapes: B rows, T positions, D residual width, H query heads, K key/value heads, E head width, F inner width
of the feed-forward layer, V vocabulary. Parameters bear the names of Hugging Face's Llama, so that a
checkpoint of that layout needs no table of names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from llmctl.config.model import ModelConfig
from llmctl.model.attention import Attend, Scoring
from llmctl.model.experts import Experts
from llmctl.model.feedforward import FeedForward
from llmctl.model.latent import LatentAttention
from llmctl.model.norms import RMSNorm, norm_of
from llmctl.model.positions import Angles, alibi_slopes, rotary_angles, rotate, sinusoids
from llmctl.model.sequence import SharedRows


class Attention(nn.Module):
    """Project to heads, turn by position, attend, project back. What each position sees is the caller's (`Attend`)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        D, E, given = config.width, config.head_width, config.attention
        self.head_width = E
        self.q_proj = nn.Linear(D, config.heads * E, bias=given.qkv_bias)
        self.k_proj = nn.Linear(D, config.kv_heads * E, bias=given.qkv_bias)
        self.v_proj = nn.Linear(D, config.kv_heads * E, bias=given.qkv_bias)
        self.o_proj = nn.Linear(config.heads * E, D, bias=given.output_bias)
        self.q_norm = RMSNorm(E, config.norm_eps) if given.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(E, config.norm_eps) if given.qk_norm else nn.Identity()
        self.sinks = nn.Parameter(torch.zeros(config.heads)) if given.sinks else None
        self.slopes = alibi_slopes(config.heads) if config.positions == "alibi" else None
        self.scoring = Scoring(given.scale, given.window_of(layer), given.softcap)

    def forward(self, x: Tensor, angles: Angles | None, layer: int, attend: Attend) -> Tensor:
        """[B,T,D] to [B,T,D]; `angles` are None where positions are not rotary."""
        heads = (*x.shape[:-1], -1, self.head_width)
        q = self.q_norm(self.q_proj(x).view(heads))  # [B,T,H,E]
        k = self.k_norm(self.k_proj(x).view(heads))  # [B,T,K,E]
        v = self.v_proj(x).view(heads)  # [B,T,K,E]
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        mixed: Tensor = self.o_proj(attend(layer, q, k, v, self.rule(x.device)).flatten(-2))
        return mixed

    def rule(self, device: torch.device) -> Scoring:
        """The layer's scoring, with what of it is a tensor."""
        scoring = self.scoring
        if self.slopes is not None:
            scoring = replace(scoring, slopes=torch.tensor(self.slopes, device=device))
        if self.sinks is not None:
            scoring = replace(scoring, sinks=self.sinks)
        return scoring


class Block(nn.Module):
    """Attention and feed-forward, each added to the residual stream, with a norm before, behind, or both."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.place, self.residual_scale = config.norm.place, config.scale.residual
        before, behind = self.place != "post", self.place != "pre"
        self.input_layernorm = norm_of(config) if before else nn.Identity()
        self.self_attn = (
            Attention(config, layer) if config.latent is None else LatentAttention(config, config.latent, layer)
        )
        self.post_attention_layernorm = norm_of(config) if before else nn.Identity()
        routed = config.experts is not None and layer >= config.experts.first_dense
        self.mlp = Experts(config, config.experts) if routed and config.experts else FeedForward(config)
        self.attention_output_layernorm = norm_of(config) if behind else nn.Identity()
        self.mlp_output_layernorm = norm_of(config) if behind else nn.Identity()

    def forward(self, x: Tensor, angles: Angles | None, layer: int, attend: Attend) -> Tensor:
        """[B,T,D] to [B,T,D]."""
        x = self._add(
            x, self.self_attn(self.input_layernorm(x), angles, layer, attend), self.attention_output_layernorm
        )
        x = self._add(x, self.mlp(self.post_attention_layernorm(x)), self.mlp_output_layernorm)
        return x  # noqa: RET504 (one line for each residual addition)

    def _add(self, x: Tensor, mixed: Tensor, norm: nn.Module) -> Tensor:
        """Put what a sublayer gives onto the stream."""
        if self.place == "sandwich":
            mixed = norm(mixed)
        x = x + (mixed if self.residual_scale == 1.0 else mixed * self.residual_scale)
        return norm(x) if self.place == "post" else x


class PredictionBlock(Block):
    """A block behind the model that predicts one token further (`PredictionConfig`).

    Its parameters bear the names of DeepSeek-V3's layout, where it follows the last layer; the embedding and the
    output matrix, which that layout repeats in it, are the model's own.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.enorm, self.hnorm = norm_of(config), norm_of(config)
        self.eh_proj = nn.Linear(2 * config.width, config.width, bias=False)
        self.shared_head = nn.ModuleDict({"norm": norm_of(config)})

    def joined(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        """What the block works on: [B,T,D] from the embedding of a token and the state that is to take it in."""
        joined: Tensor = self.eh_proj(torch.cat((self.enorm(embedded), self.hnorm(hidden)), dim=-1))
        return joined


class Transformer(nn.Module):
    """The decoder. `forward` gives hidden states; `logits` turns the ones that matter into scores.

    Attributes:
        config: its shape.
        vocab_size: V.
        layers: the blocks, and behind them those of multi-token prediction.
        attention_backend: the kernel that packed rows are to attend through (`llmctl.model.kernels`).
        sequence: the ranks that share rows, None where each has rows of its own.
        tally: figures of training since they were last taken, by name: what is to be summed, and what to divide it by.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.embed_tokens = nn.Embedding(vocab_size, config.width)
        self.embed_positions = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        for number in range(config.mtp.depth if config.mtp else 0):
            self.layers.append(PredictionBlock(config, config.layers + number))
        self.norm = nn.Identity() if config.norm.place == "post" else norm_of(config)  # the last block ends in one
        self.lm_head: nn.Module | None = (
            None if config.tied_embeddings else nn.Linear(config.width, vocab_size, bias=False)
        )
        self.attention_backend = "sdpa"
        self.sequence: SharedRows | None = None
        self.tally: dict[str, tuple[Tensor, int]] = {}

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend, noise: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm.

        Args:
            tokens: int64 [B,T].
            positions: int64 [B,T], counted from 0 in each document.
            attend: what each position sees.
            noise: [B,T,D], added to the embeddings of the tokens.

        Returns:
            [B,T,D].
        """
        x, angles = self._embedded(tokens, positions, noise), self._angles(positions)
        for index in range(self.config.layers):
            x = self.layers[index](x, angles, index, attend)
        hidden: Tensor = self.norm(x)
        return hidden

    def _embedded(self, tokens: Tensor, positions: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B,T,D]."""
        config = self.config
        x = self.embed_tokens(tokens)
        if noise is not None:
            x = x + noise.to(x.dtype)
        if config.scale.embedding != 1.0:
            x = x * config.scale.embedding
        if self.embed_positions is not None:
            x = x + self.embed_positions(positions)
        if config.positions == "sinusoidal":
            x = x + sinusoids(positions, config.width).to(x.dtype)
        embedded: Tensor = x
        return embedded

    def _angles(self, positions: Tensor) -> Angles | None:
        config = self.config
        if config.positions != "rope":
            return None
        return rotary_angles(positions, config.rotary_width, config.rope_base, config.rope_scaling)

    def ahead(
        self, hidden: Tensor, tokens: Tensor, positions: Tensor, documents: Tensor, attend: Attend
    ) -> Iterator[Tensor]:
        """Hidden states that predict the token k + 1 places on, for k = 1 … depth of multi-token prediction.

        At the last k places of a document there is no such token, and what is given there is of no use.

        Args:
            hidden: what `forward` gave for the same rows, [B,T,D].
            tokens: int64 [B,T].
            positions: int64 [B,T].
            documents: int [B,T], number of the document within its row.
            attend: as for `forward`.

        Yields:
            [B,T,D], for `logits`.
        """
        angles, first = self._angles(positions), self.config.layers
        for by, block in enumerate(list(self.layers)[first:], start=1):
            assert isinstance(block, PredictionBlock)
            later, within = shifted(tokens, documents, by)
            embedded = self._embedded(torch.where(within, later, tokens), positions)
            hidden = block(block.joined(embedded, hidden), angles, first + by - 1, attend)
            yield block.shared_head["norm"](hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: [...,D] to [...,V], in the dtype of the matrix product."""
        scale = self.config.scale
        logits: Tensor
        if self.lm_head is None:
            logits = functional.linear(hidden, self.embed_tokens.weight)
        else:
            logits = self.lm_head(hidden)  # a layer that is called, so that the engine may put another in its place
        if scale.logits != 1.0:
            logits = logits * scale.logits
        if scale.logit_softcap is not None:
            logits = scale.logit_softcap * torch.tanh(logits / scale.logit_softcap)
        return logits

    @property
    def output_weight(self) -> Tensor:
        """The output matrix [V,D]; the input embedding itself where the two are tied."""
        weight = self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def projects_plainly(self) -> bool:
        """Whether `logits` is the product with `output_weight` and nothing else."""
        scale, head = self.config.scale, self.lm_head
        plain = head is None or (type(head) is nn.Linear and head.bias is None)
        return plain and scale.logits == 1.0 and scale.logit_softcap is None

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
        variance does not grow with depth (Radford et al. 2019, GPT-2, section 2.3). Gains of norms are 1, biases and
        attention sinks 0.
        """
        deviation = math.sqrt(2 / (5 * self.config.width))
        into_residual = deviation / math.sqrt(2 * self.config.layers)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
                continue
            spread = into_residual if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")) else deviation
            drawn = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, spread, generator=generator)
            parameter.copy_(drawn)


def outline(config: ModelConfig, vocab_size: int) -> Transformer:
    """A model without weights: shapes only, no memory. `load_state_dict(weights, assign=True)` gives it some."""
    with torch.device("meta"), _Undrawn():
        return Transformer(config, vocab_size)


class _Undrawn(TorchFunctionMode):
    """Within it layers draw no first weights: where there is no memory, torch does so in Python, 2 ms for each."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given, home = kwargs or {}, getattr(function, "__module__", None)
        return given["tensor"] if home == nn.init.__name__ else function(*args, **given)


def shifted(values: Tensor, documents: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """The values `by` places on, and whether those lie in the same document: both [B,T], of [B,T]."""
    later = values.roll(-by, dims=1)
    within = documents.roll(-by, dims=1) == documents
    within[:, values.shape[1] - by :] = False
    return later, within


def flops_per_token(config: ModelConfig, vocab_size: int, seq_len: int) -> int:
    """Floating-point operations of forward and backward for one token of a row of `seq_len`.

    6 for each weight of a matrix product that a token passes through, and 12 x layers x heads x head width x seq_len
    for attention, a window in place of a longer row (Chowdhery et al. 2022, PaLM, appendix B). The embedding look-up
    is no product; the output matrix is one, and one more for each token of multi-token prediction.
    """
    experts, latent = config.experts, config.latent
    E = config.head_width if latent is None else (config.head_width + latent.value_width) / 2  # of scores and of values
    inner = (3 if config.feed_forward.gated else 2) * config.width
    dense = inner * config.ffn_width
    ahead = config.mtp.depth if config.mtp else 0
    layers = config.layers + ahead
    weights = layers * _projections(config) + (1 + ahead) * vocab_size * config.width + ahead * 2 * config.width**2
    if experts is None:
        weights += layers * dense
    else:
        first = min(experts.first_dense, layers)
        routed = inner * experts.ffn_width * (experts.top + experts.shared) + config.width * experts.count
        weights += first * dense + (layers - first) * routed
    windows = (config.attention.window_of(layer) or seq_len for layer in range(layers))
    return 6 * weights + round(12 * config.heads * E * sum(min(window, seq_len) for window in windows))


def _projections(config: ModelConfig) -> int:
    """Weights of one layer's attention."""
    D, H, E, latent = config.width, config.heads, config.head_width, config.latent
    if latent is None:
        return D * E * (2 * H + 2 * config.kv_heads)
    queries = D * H * E if latent.query_rank is None else latent.query_rank * (D + H * E)
    made = latent.kv_rank * H * (E - latent.rope_width + latent.value_width)
    return queries + D * (latent.kv_rank + latent.rope_width) + made + H * latent.value_width * D
