import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.config.model import ModelConfig
from llmctl.model.likelihood import Tensors, cross_entropies
from llmctl.model.transformer import Transformer
from llmctl.objectives.losses import next_token
from llmctl.tokens.batch import IGNORE, PADDING_DOCUMENT, Batch
from llmctl.train.heldout import HeldOut, measure

CPU = torch.device("cpu")
VOCAB = 23
SHAPE = {"name": "nano", "width": 8, "layers": 2, "heads": 2, "kv_heads": 1, "ffn_width": 12}


def small_model(*, tied=True):
    model = Transformer(ModelConfig.model_validate({**SHAPE, "tied_embeddings": tied}), VOCAB)
    model.init_weights(3)
    return model


def packed(rows, seq_len):
    """A batch from rows of documents, each a list of ids."""
    shape = (len(rows), seq_len)
    tokens = np.full(shape, 3, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    documents = np.full(shape, PADDING_DOCUMENT, dtype=np.int32)
    labels = np.full(shape, IGNORE, dtype=np.int64)
    for row, held in enumerate(rows):
        at = 0
        for number, ids in enumerate(held):
            part = slice(at, at + len(ids))
            tokens[row, part], positions[row, part], documents[row, part] = ids, np.arange(len(ids)), number
            labels[row, at : at + len(ids) - 1] = ids[1:]
            at += len(ids)
    return Batch(tokens, positions, documents, labels)


def gradient(model, batches):
    """Loss and gradient of the mean over all targets of all batches, accumulated batch by batch."""
    model.zero_grad()
    targets = sum(batch.targets for batch in batches)
    total = 0.0
    for batch in batches:
        loss = next_token(model, Tensors.of(batch, CPU)) / targets
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in model.parameters()])


def documents_of(draw_lengths, seed):
    random = np.random.default_rng(seed)
    return [random.integers(0, VOCAB, size=length).tolist() for length in draw_lengths]


def test_uniform_logits_cost_the_log_of_the_vocabulary():
    losses = cross_entropies(
        lambda hidden: hidden.new_zeros(hidden.shape[0], VOCAB),
        torch.zeros(5, 8),
        torch.arange(5),
        logits_at_once=10**6,
        vocab_size=VOCAB,
    )
    torch.testing.assert_close(losses, torch.full((5,), math.log(VOCAB)))


def test_closed_form_of_two_classes():
    # Logits (z, 0): the loss of class 0 is log(1 + exp(-z)).
    z = torch.tensor([[-3.0], [0.0], [40.0]])
    losses = cross_entropies(
        lambda hidden: torch.cat([hidden, torch.zeros_like(hidden)], 1),
        z,
        torch.zeros(3, dtype=torch.int64),
        logits_at_once=100,
        vocab_size=2,
    )
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(3)), math.log(2), 0.0], abs=1e-6)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [1, 7 * VOCAB, 10**6])
def test_chunks_of_logits_change_nothing(tied, chunk):
    model = small_model(tied=tied)
    batch = Tensors.of(packed([documents_of([9, 7], 0), documents_of([15], 1)], 18), CPU)
    whole = next_token(model, batch)
    expected = torch.autograd.grad(whole, list(model.parameters()))
    loss = next_token(model, batch, logits_at_once=chunk)
    for mine, theirs in zip(torch.autograd.grad(loss, list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize("chunk", [3 * VOCAB, 10**6])
def test_gradient_is_the_finite_difference(chunk):
    torch.manual_seed(0)
    hidden = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCAB, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(VOCAB, (8,))

    def total(hidden, weight):
        logits_of = functools.partial(torch.nn.functional.linear, weight=weight)
        return cross_entropies(logits_of, hidden, targets, logits_at_once=chunk, vocab_size=VOCAB).sum()

    assert torch.autograd.gradcheck(total, (hidden, weight), eps=1e-6, atol=1e-8, rtol=1e-6)


@settings(max_examples=12)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=6),
    seed=st.integers(0, 1000),
    more=st.integers(0, 5),
    order=st.randoms(use_true_random=False),
)
def test_packing_padding_and_accumulation_change_neither_loss_nor_gradient(lengths, seed, more, order):
    documents = documents_of([*lengths, 5], seed)
    model = small_model()
    one_row = [packed([documents], sum(map(len, documents)))]
    one_each = [packed([[ids] for ids in documents], 9 + more)]
    shuffled = list(documents)
    order.shuffle(shuffled)
    half = len(shuffled) // 2
    in_two = [packed([shuffled[:half]], 60 + more), packed([shuffled[half:]], 60)]
    by_row = [one_each[0].slice(slice(n, n + 1)) for n in range(len(documents))]
    loss, expected = gradient(model, one_row)
    for batches in (one_each, in_two, by_row):
        other, found = gradient(model, batches)
        assert other == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_batch_without_targets_has_no_loss_and_no_gradient():
    model = small_model()
    batch = packed([[[1]], [[2]]], 4)
    loss = next_token(model, Tensors.of(batch, CPU))
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_held_out_figures_against_a_plain_computation():
    model = small_model()
    documents = documents_of([9, 7, 12], 4)
    lengths = np.arange(VOCAB, dtype=np.int32) % 4  # every fourth id stands for no byte
    nll = text_nll = targets = count = 0.0
    for ids in documents:
        alone = Tensors.of(packed([[ids]], len(ids)), CPU)
        from llmctl.model.attention import packed as within

        with torch.no_grad():
            scores = model.logits(model(alone.tokens, alone.positions, within(alone.documents)))[0]
        for at, wanted in enumerate(ids[1:]):
            loss = -torch.log_softmax(scores[at], 0)[wanted].item()
            nll, targets = nll + loss, targets + 1
            if lengths[wanted]:
                text_nll, count = text_nll + loss, count + int(lengths[wanted])
    found = measure(model, [packed([documents[:2]], 20), packed([documents[2:]], 14)], lengths)
    assert (found.targets, found.bytes) == (targets, count)
    assert found.loss == pytest.approx(nll / targets, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(nll / targets), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(text_nll / math.log(2) / count, rel=1e-6)


def test_a_mean_over_nothing_is_not_a_number():
    assert math.isnan(HeldOut().loss)
    assert math.isnan(HeldOut().bits_per_byte)
