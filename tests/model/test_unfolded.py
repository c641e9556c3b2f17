"""Rows that begin alike, computed folded: states and gradients are as by themselves, whatever the attention."""

import pytest
import torch

from llmctl.model.likelihood import Tensors, hidden_states
from llmctl.tokens.batch import HOME, ROWS

from .shapes import LATENT, make, one_document_each, random_tokens

BEGINNING, ENDS = 5, (4, 1, 7)
LONGEST = BEGINNING + max(ENDS)
KINDS = {
    "plain": {},
    "alibi": {"positions": "alibi"},
    "window, softcap, sinks": {"attention": {"softcap": 0.5, "sinks": True, "window": 4}},
    "latent": LATENT,
    "learned": {"positions": "learned"},
    "native": {"width": 64},  # heads of 16, which our own kernel takes
}


def folded(tokens):
    """One row: the beginning of all rows of [R,T], then each row's own places."""
    rows = torch.full(tokens.shape, -1)
    flat, positions, home, end = (
        [tokens[:1, :BEGINNING]],
        [torch.arange(BEGINNING)],
        [torch.arange(BEGINNING)],
        BEGINNING,
    )
    for row, size in enumerate(ENDS):
        own = slice(BEGINNING, BEGINNING + size)
        rows[row, :BEGINNING], rows[row, own] = torch.arange(BEGINNING), torch.arange(end, end + size)
        flat.append(tokens[row : row + 1, own])
        positions.append(torch.arange(own.start, own.stop))
        home.append(row * LONGEST + positions[-1])
        end += size
    beside = {ROWS: rows[None], HOME: torch.cat(home)[None]}
    line, places = torch.cat(flat, dim=1), torch.cat(positions)[None]
    return Tensors(line, places, torch.zeros_like(line), line, one_each=False, beside=beside), rows


@pytest.mark.parametrize("kind", KINDS)
def test_states_and_gradients_are_those_of_rows_by_themselves(kind):
    model = make(KINDS[kind])
    model.attention_backend = "native" if kind == "native" else "sdpa"
    tokens = random_tokens(len(ENDS), LONGEST)
    tokens[:, :BEGINNING] = tokens[0, :BEGINNING]
    positions, documents = one_document_each(tokens)
    batch, rows = folded(tokens)
    real = rows >= 0
    weights = torch.randn(int(real.sum()), model.config.width, generator=torch.Generator().manual_seed(3))
    found = []
    for states in (
        hidden_states(model, batch)[0][0][rows[real]],
        hidden_states(model, Tensors(tokens, positions, documents.int(), tokens, one_each=True))[0][real],
    ):
        model.zero_grad()
        (states * weights).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((states.detach(), gradients))
    (ours, ours_), (theirs, theirs_) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert ours_.keys() == theirs_.keys()
    for name, gradient in ours_.items():
        torch.testing.assert_close(gradient, theirs_[name], rtol=1e-4, atol=2e-5)
