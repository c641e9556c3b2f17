"""Blocks whose gradient is written out, against what autograd makes of the same blocks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from llmctl.config.model import ModelConfig
from llmctl.model import differentiated
from llmctl.model.differentiated import differentiate
from llmctl.model.likelihood import Tensors
from llmctl.model.transformer import Block, Transformer
from llmctl.objectives.losses import next_token

VOCAB = 97


def model_of(**given: object) -> Transformer:
    """With gains that are not 1, so that theirs is a gradient like any other."""
    shape = {"width": 48, "layers": 2, "heads": 6, "kv_heads": 2, "ffn_width": 72, "context": 64}
    model = Transformer(ModelConfig.model_validate({"name": "tiny", **shape, **given}), VOCAB)
    model.init_weights(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    model.attention_backend = "native"
    return model


def rows() -> Tensors:
    """Three rows of two documents and padding."""
    generator = torch.Generator().manual_seed(0)
    tokens, labels = (torch.randint(0, VOCAB, (3, 40), generator=generator) for _ in range(2))
    documents = torch.tensor([[0] * 17 + [1] * 20 + [-1] * 3] * 3, dtype=torch.int32)
    positions = torch.tensor([[*range(17), *range(20), *range(3)]] * 3)
    labels[documents != documents.roll(-1, dims=1)] = -100
    labels[documents < 0] = -100
    return Tensors(tokens, positions, documents, labels, one_each=False)


def gradients(model: Transformer) -> tuple[Tensor, dict[str, Tensor | None]]:
    model.zero_grad(set_to_none=True)
    loss = next_token(model, rows())
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers that were computed here."""
    found: list[int] = []
    apply = differentiated._Mixed.apply

    def noted(*given: object) -> object:
        found.append(len(found))
        return apply(*given)

    monkeypatch.setattr(differentiated._Mixed, "apply", noted)
    return found


@pytest.mark.parametrize("given", [{}, {"tied_embeddings": False, "kv_heads": 6}, {"attention": {"window": 7}}])
def test_the_gradient_of_every_weight_is_that_of_autograd_in_float64(
    given: dict[str, object], taken: list[int]
) -> None:
    model = model_of(**given)
    common = copy.deepcopy(model)
    common.attention_backend = "sdpa"
    differentiate(model)
    (loss, found), (wanted_loss, wanted) = gradients(model), gradients(common)
    assert len(taken) == 2
    assert loss == pytest.approx(wanted_loss.item(), rel=1e-6)
    for name, grad in wanted.items():
        mine = found[name]
        assert mine is not None, name
        assert grad is not None, name
        assert (mine - grad).abs().max() <= 2e-5 * grad.abs().max(), name


@pytest.mark.parametrize(
    "given",
    [
        {"attention": {"qk_norm": True}},
        {"norm": {"place": "sandwich"}},
        {"feed_forward": {"activation": "geglu"}},
        {"attention": {"qkv_bias": True}},
        {"positions": "alibi"},
    ],
)
def test_what_is_not_of_llamas_kind_learns_as_before(given: dict[str, object], taken: list[int]) -> None:
    model = model_of(**given)
    model.attention_backend = "sdpa"
    loss, before = gradients(model)
    differentiate(model)
    same, after = gradients(model)
    assert not taken
    assert torch.equal(loss, same)
    assert before.keys() == after.keys()
    for name, grad in before.items():
        again = after[name]
        assert grad is not None
        assert again is not None
        assert torch.equal(grad, again), name


def test_frozen_weights_and_answers_without_a_gradient_go_the_common_way(taken: list[int]) -> None:
    model = model_of()
    differentiate(model)
    with torch.no_grad():
        next_token(model, rows())
    assert not taken
    frozen = model.layers[0].get_submodule("mlp.up_proj")
    frozen.requires_grad_(requires_grad=False)
    _, found = gradients(model)
    assert len(taken) == 1
    assert found["layers.0.mlp.up_proj.weight"] is None
    assert found["layers.0.mlp.gate_proj.weight"] is not None


def test_a_copy_learns_with_its_own_weights() -> None:
    model = model_of()
    differentiate(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        model.layers[0].get_submodule("mlp.down_proj").weight.zero_()
    assert isinstance(copied.layers[0], Block)
    _, own = gradients(copied)
    grad = own["layers.0.mlp.gate_proj.weight"]
    assert grad is not None
    assert grad.abs().max() > 0
    _, others = gradients(model)
    grad = others["layers.0.mlp.gate_proj.weight"]
    assert grad is not None
    assert grad.abs().max() == 0
