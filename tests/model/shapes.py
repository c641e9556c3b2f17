"""Small models of every kind, and rows for them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llmctl.config.model import ModelConfig
from llmctl.model.attention import Attend, packed
from llmctl.model.transformer import Transformer

VOCAB = 61
SHAPE = {
    "name": "custom",
    "width": 32,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "ffn_width": 48,
    "context": 64,
    "tied_embeddings": True,
    "rope_base": 10_000.0,
    "norm_eps": 1e-5,
}
LATENT: dict[str, Any] = {"kv_heads": 4, "head_width": 12, "latent": {"kv_rank": 10, "rope_width": 4, "value_width": 6}}
LATENT_QUERIES: dict[str, Any] = {**LATENT, "latent": {**LATENT["latent"], "query_rank": 14}}
GROUPED: dict[str, Any] = {
    "count": 8,
    "top": 3,
    "ffn_width": 12,
    "router": "sigmoid",
    "scale": 2.5,
    "groups": 4,
    "groups_kept": 2,
    "balance": "bias",
}


def make(changes: Mapping[str, Any], seed: int = 0) -> Transformer:
    """A model whose gains, biases (the routers' too) and sinks are random, so that each of them shows."""
    model = Transformer(ModelConfig.model_validate({**SHAPE, **changes}), VOCAB)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in [*model.parameters(), *model.buffers()]:
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def random_tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def one_document_each(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and documents."""
    return torch.arange(tokens.shape[1]).expand_as(tokens), torch.zeros_like(tokens)


def one_document_each_attended(tokens: Tensor) -> tuple[Tensor, Attend]:
    """Positions and attention."""
    positions, documents = one_document_each(tokens)
    return positions, packed(documents)


def logits_of(model: Transformer, tokens: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
    with torch.no_grad():
        return model.logits(model(tokens, positions, packed(documents)))


def packed_row() -> tuple[Tensor, Tensor, Tensor]:
    """Documents of 6, 9 and 5 tokens and 2 of padding in one row."""
    lengths, padding = [6, 9, 5], 2
    positions = torch.cat([torch.arange(n) for n in [*lengths, padding]])[None]
    documents = torch.repeat_interleave(torch.tensor([0, 1, 2, -1]), torch.tensor([*lengths, padding]))[None]
    return random_tokens(1, positions.shape[1]), positions, documents
