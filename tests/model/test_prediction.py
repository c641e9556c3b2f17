"""Multi-token prediction: the equations, the names of its parameters, and that it looks at nothing it may not see."""

from typing import Any

import pytest
import torch
from torch import Tensor

from llmctl.config.model import ModelConfig
from llmctl.inference.cache import KVCache
from llmctl.model.attention import packed
from llmctl.model.positions import rotary_angles
from llmctl.model.transformer import PredictionBlock, Transformer
from tests.model.shapes import (
    GROUPED,
    LATENT_QUERIES,
    SHAPE,
    VOCAB,
    logits_of,
    make,
    one_document_each,
    packed_row,
    random_tokens,
)

MTP: dict[str, dict[str, Any]] = {
    "one": {"mtp": {"depth": 1}},
    "three": {"mtp": {"depth": 3}},
    "untied-scaled": {"mtp": {"depth": 2}, "tied_embeddings": False, "scale": {"embedding": 3.0}},
    "deepseek": {**LATENT_QUERIES, "mtp": {"depth": 2}, "experts": {**GROUPED, "shared": 1, "first_dense": 1}},
}
each = pytest.mark.parametrize("switch", MTP)


def ahead(model: Transformer, tokens: Tensor, positions: Tensor, documents: Tensor) -> list[Tensor]:
    """Logits of every depth."""
    attend = packed(documents)
    with torch.no_grad():
        hidden = model(tokens, positions, attend)
        return [model.logits(state) for state in model.ahead(hidden, tokens, positions, documents, attend)]


@each
def test_the_next_token_is_predicted_as_without_it(switch: str) -> None:
    model = make(MTP[switch])
    plain = Transformer(ModelConfig.model_validate({**SHAPE, **MTP[switch], "mtp": None}), VOCAB)
    left_out = plain.load_state_dict(model.state_dict(), strict=False).unexpected_keys
    assert left_out
    assert {int(name.split(".")[1]) for name in left_out} == set(range(2, len(model.layers)))
    tokens = random_tokens(2, 9)
    assert torch.equal(*(logits_of(each, tokens, *one_document_each(tokens)) for each in (model, plain)))
    cache = KVCache(model.config, 1, torch.float32, torch.device("cpu"))
    assert cache.data.shape[0] == 2


def test_parameters_bear_the_names_of_deepseek() -> None:
    with torch.device("meta"):
        model = Transformer(ModelConfig.model_validate({"name": "deepseek-v3", "mtp": {"depth": 1}}), 129_280)
    own = {name for name in model.state_dict() if name.startswith("layers.61.")}
    assert {name.removeprefix("layers.61.") for name in own} > {
        "enorm.weight",
        "hnorm.weight",
        "eh_proj.weight",
        "shared_head.norm.weight",
        "input_layernorm.weight",
        "self_attn.kv_a_proj_with_mqa.weight",
    }
    shared = 2 * 129_280 * 7168  # that layout repeats the embedding and the output matrix
    of_module = sum(model.state_dict()[name].numel() for name in own)
    assert (of_module + shared) / 1e9 == pytest.approx(14.0, rel=0.05)  # of the module weights in its README


def test_it_equals_its_equations() -> None:
    model = make(MTP["three"])
    T = 7
    tokens = random_tokens(1, T)
    positions, documents = one_document_each(tokens)
    got = ahead(model, tokens, positions, documents)
    with torch.no_grad():
        state = model(tokens, positions, packed(documents))[0]
        for depth in (1, 2, 3):
            length = T - depth
            block = model.layers[1 + depth]
            assert isinstance(block, PredictionBlock)
            later = model.embed_tokens(tokens[0, depth:])
            joined = torch.cat((block.enorm(later), block.hnorm(state[:length])), dim=-1) @ block.eh_proj.weight.T
            angles = rotary_angles(torch.arange(length)[None], 8, 10_000.0)
            state = block(joined[None], angles, 0, packed(torch.zeros(1, length, dtype=torch.int64)))[0]
            wanted = model.logits(block.shared_head["norm"](state))
            assert torch.allclose(got[depth - 1][0, :length], wanted, atol=1e-5)


@each
def test_depth_k_sees_k_tokens_further_and_no_more(switch: str) -> None:
    model, tokens = make(MTP[switch]), random_tokens(1, 16)
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % VOCAB
    before, after = (ahead(model, given, *one_document_each(tokens)) for given in (tokens, changed))
    for depth, (a, b) in enumerate(zip(before, after, strict=True), start=1):
        assert torch.allclose(a[:, : 9 - depth], b[:, : 9 - depth], atol=1e-6)
        assert not torch.allclose(a[:, 9 - depth], b[:, 9 - depth], atol=1e-3)


@each
def test_nothing_is_seen_across_documents(switch: str) -> None:
    model = make(MTP[switch])
    tokens, positions, documents = packed_row()
    together = ahead(model, tokens, positions, documents)
    for number in range(3):
        alone = tokens[documents == number][None]
        apart = ahead(model, alone, *one_document_each(alone))
        for a, b in zip(together, apart, strict=True):
            assert torch.allclose(a[documents == number], b[0], atol=1e-5)
