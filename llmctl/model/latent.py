"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from llmctl.config.blocks import LatentConfig
from llmctl.config.model import ModelConfig
from llmctl.model.attention import Attend, Scoring
from llmctl.model.norms import RMSNorm
from llmctl.model.positions import Angles, rotate


class LatentAttention(nn.Module):
    """Keys and values of all heads are made from one vector of width R and one rotary key of width P.

    Where nothing is kept they are made, as in any attention. A cache keeps the two vectors alone: the matrices that
    would make keys and values are then multiplied into the queries and the result instead, which gives the same.
    Parameters bear the names of Hugging Face's DeepSeek-V3, but for compressed queries, whose three parts are one
    `q_proj` here; the rotary part is in the rotate-half layout.

    Shapes: beside those of the model, R rank of keys and values, P rotary width, N = E - P, G width of values.
    """

    def __init__(self, config: ModelConfig, latent: LatentConfig, layer: int) -> None:
        super().__init__()
        D, H, E, given = config.width, config.heads, config.head_width, config.attention
        self.heads, self.rank, self.rotary, self.value_width = H, latent.kv_rank, latent.rope_width, latent.value_width
        self.plain_width = E - latent.rope_width
        self.q_proj: nn.Module
        if latent.query_rank is None:
            self.q_proj = nn.Linear(D, H * E, bias=False)
        else:
            self.q_proj = nn.Sequential(
                nn.Linear(D, latent.query_rank, bias=False),
                RMSNorm(latent.query_rank, config.norm_eps),
                nn.Linear(latent.query_rank, H * E, bias=False),
            )
        self.kv_a_proj_with_mqa = nn.Linear(D, latent.kv_rank + latent.rope_width, bias=False)
        self.kv_a_layernorm = RMSNorm(latent.kv_rank, config.norm_eps)
        self.kv_b_proj = nn.Linear(latent.kv_rank, H * (self.plain_width + latent.value_width), bias=False)
        self.o_proj = nn.Linear(H * latent.value_width, D, bias=given.output_bias)
        self.sinks = nn.Parameter(torch.zeros(H)) if given.sinks else None
        scale = E**-0.5 if given.scale is None else given.scale
        self.scoring = Scoring(scale, given.window_of(layer), given.softcap)

    def forward(self, x: Tensor, angles: Angles, layer: int, attend: Attend) -> Tensor:
        """[B,T,D] to [B,T,D]."""
        q = self.q_proj(x).view(*x.shape[:-1], self.heads, -1)  # [B,T,H,E]
        q_plain, q_turned = q.split([self.plain_width, self.rotary], dim=-1)
        q_turned = rotate(q_turned, angles)
        shared, turned = self.kv_a_proj_with_mqa(x).split([self.rank, self.rotary], dim=-1)
        shared = self.kv_a_layernorm(shared)  # [B,T,R]
        turned = rotate(turned[..., None, :], angles)  # [B,T,1,P]
        scoring = self.scoring if self.sinks is None else replace(self.scoring, sinks=self.sinks)
        if attend.keeps:
            mixed = self._through_the_latent(q_plain, q_turned, shared, turned, layer, attend, scoring)
        else:
            made = self.kv_b_proj(shared).view(*x.shape[:-1], self.heads, -1)  # [B,T,H,N+G]
            k_plain, v = made.split([self.plain_width, self.value_width], dim=-1)
            k = torch.cat((k_plain, turned.expand(*k_plain.shape[:-1], -1)), dim=-1)
            mixed = attend(layer, torch.cat((q_plain, q_turned), dim=-1), k, v, scoring)
        projected: Tensor = self.o_proj(mixed.flatten(-2))
        return projected

    def _through_the_latent(
        self,
        q_plain: Tensor,
        q_turned: Tensor,
        shared: Tensor,
        turned: Tensor,
        layer: int,
        attend: Attend,
        scoring: Scoring,
    ) -> Tensor:
        """Attention of H query heads to one head of keys [B,T,1,R+P], whose first R columns are its values."""
        by_head = self.kv_b_proj.weight.view(self.heads, -1, self.rank)
        to_keys, to_values = torch.split(by_head, [self.plain_width, self.value_width], dim=1)  # [H,N,R], [H,G,R]
        q = torch.cat((torch.einsum("bthn,hnr->bthr", q_plain, to_keys), q_turned), dim=-1)  # [B,T,H,R+P]
        v = shared[..., None, :]
        mixed = attend(layer, q, torch.cat((v, turned), dim=-1), v, scoring)  # [B,T,H,R]
        return torch.einsum("bthr,hgr->bthg", mixed, to_values)
