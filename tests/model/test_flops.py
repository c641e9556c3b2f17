"""The formula of operations against what torch counts while they run."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmctl.config.model import ModelConfig
from llmctl.model.likelihood import Tensors
from llmctl.model.transformer import Transformer, flops_per_token
from llmctl.objectives.losses import next_token

VOCAB = 97
SHAPE = {"name": "nano", "width": 64, "layers": 3, "heads": 4, "kv_heads": 2, "ffn_width": 96}
LATENT = {"kv_rank": 24, "query_rank": 40, "rope_width": 8, "value_width": 12}
CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "untied": {"tied_embeddings": False},
    "mha": {"kv_heads": 4},
    "head-width": {"head_width": 32},
    "no-gate": {"feed_forward": {"activation": "gelu"}},
    "latent": {"kv_heads": 4, "head_width": 24, "latent": LATENT},
    "latent-plain-queries": {"kv_heads": 4, "head_width": 24, "latent": {**LATENT, "query_rank": None}},
    "experts": {"experts": {"count": 4, "top": 2, "ffn_width": 32}},
    "experts-shared-first-dense": {"experts": {"count": 4, "top": 2, "ffn_width": 32, "shared": 1, "first_dense": 1}},
    "mtp": {"mtp": {"depth": 2}},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("length", [16, 64])
def test_the_formula_counts_what_torch_counts(case: str, length: int) -> None:
    config = ModelConfig.model_validate({**SHAPE, **CASES[case]})
    model = Transformer(config, VOCAB)
    model.init_weights(0)
    tokens = torch.randint(0, VOCAB, (2, length), generator=torch.Generator().manual_seed(0))
    positions, documents = torch.arange(length).expand(2, length), torch.zeros(2, length, dtype=torch.int32)
    batch = Tensors(tokens, positions, documents, tokens, one_each=True)
    # torch does not count what its fused attention for CPUs does, but the products that it stands for.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        next_token(model, batch).backward()  # type: ignore[no-untyped-call]
    counted = counter.get_total_flops() / tokens.numel()
    if config.mtp is not None:  # the last places of a row have no token so far on, and skip the output matrix
        ahead = sum(range(1, config.mtp.depth + 1)) / length
        counted += 6 * ahead * VOCAB * config.width
    assert counted == pytest.approx(flops_per_token(config, VOCAB, length), rel=1e-6)


def test_a_window_bounds_what_attention_costs() -> None:
    plain = ModelConfig.model_validate(SHAPE)
    narrow = ModelConfig.model_validate({**SHAPE, "attention": {"window": 8, "pattern": ["local", "global"]}})
    saved = 12 * 4 * 16 * 2 * (64 - 8)  # two of three layers are local
    assert flops_per_token(plain, VOCAB, 64) - flops_per_token(narrow, VOCAB, 64) == saved
    assert flops_per_token(plain, VOCAB, 8) == flops_per_token(narrow, VOCAB, 8)
