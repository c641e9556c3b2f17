"""What is learned beside the next token: in the gradient, not in the value; its targets; its figures."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from llmctl.config.model import ModelConfig
from llmctl.model.attention import packed
from llmctl.model.likelihood import Tensors
from llmctl.model.transformer import Transformer
from llmctl.objectives.losses import next_token
from llmctl.tokens.batch import IGNORE, PADDING_DOCUMENT, Batch

VOCAB = 31
SHAPE = {"name": "nano", "width": 32, "layers": 2, "heads": 2, "kv_heads": 2, "ffn_width": 48}
EXPERTS = {"count": 4, "top": 2, "ffn_width": 16, "balance_loss": 0.1, "z_loss": 0.01}
MODELS: dict[str, dict[str, Any]] = {
    "mtp": {"mtp": {"depth": 2}},
    "experts": {"experts": EXPERTS},
    "both": {"mtp": {"depth": 1, "weight": 0.5}, "experts": EXPERTS},
}


def made(changes: dict[str, Any]) -> Transformer:
    model = Transformer(ModelConfig.model_validate({**SHAPE, **changes}), VOCAB)
    model.init_weights(0)
    return model


def rows(count: int) -> Batch:
    """Two documents of random lengths and padding in each row of 16."""
    random = np.random.default_rng(count)
    tokens = random.integers(VOCAB, size=(count, 16))
    positions, labels = np.zeros_like(tokens), np.full_like(tokens, IGNORE)
    documents = np.full((count, 16), PADDING_DOCUMENT, dtype=np.int32)
    for row in range(count):
        at = 0
        for document in range(2):
            end = at + int(random.integers(2, 8))
            positions[row, at:end], documents[row, at:end] = np.arange(end - at), document
            labels[row, at : end - 1] = tokens[row, at + 1 : end]
            at = end
    return Batch(tokens, positions, documents, labels)


def tensors(batch: Batch) -> Tensors:
    return Tensors.of(batch, torch.device("cpu"))


@pytest.mark.parametrize("name", MODELS)
def test_the_value_is_that_of_the_next_token_alone_and_the_gradient_is_not(name: str) -> None:
    model, batch = made(MODELS[name]), tensors(rows(4))
    with torch.no_grad():
        alone = next_token(model.eval(), batch)
    trained = next_token(model.train(), batch)
    assert trained.item() == alone.item()
    trained.backward()  # type: ignore[no-untyped-call]
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


def test_the_gradient_is_that_of_the_weighted_sum() -> None:
    model, batch = made(MODELS["mtp"]), tensors(rows(3))
    next_token(model, batch).backward()  # type: ignore[no-untyped-call]
    got = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    attend = packed(batch.documents)
    hidden = model(batch.tokens, batch.positions, attend)
    total = torch.zeros(())
    states = [hidden, *model.ahead(hidden, batch.tokens, batch.positions, batch.documents, attend)]
    for depth, state in enumerate(states):
        logits = model.logits(state)
        weight = 1.0 if depth == 0 else 0.3 / 2
        for row in range(3):
            for place in range(16 - 1 - depth):
                target = place + 1 + depth
                document = batch.documents[row, place]
                if document >= 0 and document == batch.documents[row, target]:
                    nll = functional.cross_entropy(logits[row, place], batch.tokens[row, target])
                    total = total + weight * nll
    total.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        given = got[name]
        assert given is not None
        assert parameter.grad is not None
        assert torch.allclose(given, parameter.grad, atol=1e-4), name


@pytest.mark.parametrize("name", MODELS)
def test_rows_may_be_dealt_to_micro_batches_as_one_likes(name: str) -> None:
    model, batch = made(MODELS[name]), rows(6)
    next_token(model, tensors(batch)).backward()  # type: ignore[no-untyped-call]
    whole, tally = [parameter.grad for parameter in model.parameters()], model.tally
    model.zero_grad()
    model.tally = {}
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        next_token(model, tensors(batch.slice(part))).backward()  # type: ignore[no-untyped-call]
    for a, parameter in zip(whole, model.parameters(), strict=True):
        assert a is not None
        assert parameter.grad is not None
        assert torch.allclose(a, parameter.grad, rtol=1e-3, atol=1e-4)
    assert tally.keys() == model.tally.keys()
    for key, (value, places) in tally.items():
        assert model.tally[key][1] == places
        assert model.tally[key][0].item() == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_it_overfits_one_batch_beside_and_all(name: str) -> None:
    model, batch = made(MODELS[name]), tensors(rows(2))
    targets = int((batch.labels != IGNORE).sum())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(60):
        model.tally = {}
        loss = next_token(model, batch) / targets
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.item() < 0.3
    if "mtp" in MODELS[name]:
        nll, places = model.tally["mtp_loss"]
        assert nll.item() / places < 0.5
    if "experts" in MODELS[name]:
        balance, places = model.tally["router_balance"]
        assert 0.9 < balance.item() / places < 2.0
