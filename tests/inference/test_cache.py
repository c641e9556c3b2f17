"""Logits through the paged cache are those without any cache, however the tokens are cut into steps."""

import random
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.inference.cache import KVCache, Span, cache_for, step_order
from llmctl.model.attention import packed
from llmctl.model.transformer import Transformer
from tests.inference.conftest import VOCAB, lively

LENGTHS = (37, 1, 20, 20, 5)
LATENT = {"kv_rank": 12, "rope_width": 8, "value_width": 16}
SHAPES = {
    "grouped": {"kv_heads": 2},
    "latent": {"kv_heads": 4, "head_width": 24, "latent": LATENT},
    "window": {"attention": {"window": 7}},
    "capped": {"attention": {"softcap": 5.0, "sinks": True}},
    "alibi": {"positions": "alibi"},
    "experts": {"experts": {"count": 4, "top": 2, "ffn_width": 32}},
}


def tokens_of(lengths: tuple[int, ...]) -> list[list[int]]:
    drawn = random.Random(0)
    return [[drawn.randrange(VOCAB) for _ in range(length)] for length in lengths]


def uncached(model: Transformer, tokens: list[int]) -> torch.Tensor:
    rows = torch.tensor([tokens])
    return model.logits(model(rows, torch.arange(len(tokens))[None], packed(torch.zeros_like(rows))))[0]


def run(model: Transformer, cache: KVCache, tokens: list[list[int]], tables: list[list[int]], steps: list[list[int]]):
    """Logits [T,V] of each sequence, run in steps that say how many tokens each sequence runs."""
    done = [0] * len(tokens)
    got: list[list[torch.Tensor]] = [[] for _ in tokens]
    for step in steps:
        running = [index for index, count in enumerate(step) if count]
        spans = [Span(tables[index], done[index], step[index]) for index in running]
        order = step_order(spans)
        running, spans = [running[place] for place in order], [spans[place] for place in order]
        row = [tokens[i][span.start : span.length] for i, span in zip(running, spans, strict=True)]
        positions = [place for span in spans for place in range(span.start, span.length)]
        flat = torch.tensor([[token for part in row for token in part]])
        logits = model.logits(model(flat, torch.tensor([positions]), cache.attend(spans)))[0]
        for index, part in zip(running, logits.split([span.count for span in spans]), strict=True):
            got[index].append(part)
            done[index] += len(part)
    return [torch.cat(parts) for parts in got]


def scattered(lengths: tuple[int, ...], block: int, seed: int) -> tuple[list[list[int]], int]:
    """Block tables in no order, and how many blocks there are."""
    counts = [-(-length // block) for length in lengths]
    blocks = list(range(sum(counts) + 3))
    random.Random(seed).shuffle(blocks)
    return [[blocks.pop() for _ in range(count)] for count in counts], sum(counts) + 3


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_paged_logits_equal_uncached(shape: str) -> None:
    model = lively(**SHAPES[shape])
    model.eval()
    tokens = tokens_of(LENGTHS)
    tables, blocks = scattered(LENGTHS, 4, 0)
    cache = KVCache(model.config, blocks, torch.float32, torch.device("cpu"), 4)
    # A prompt in one, a prompt in chunks beside tokens one by one, and a token of each.
    steps = [[9, 1, 7, 7, 0], [20, 0, 1, 1, 4], [1, 0, 1, 1, 1], [7, 0, 11, 11, 0]]
    for got, ids in zip(run(model, cache, tokens, tables, steps), tokens, strict=True):
        assert torch.allclose(got, uncached(model, ids), atol=2e-4)


@settings(max_examples=25)
@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=8), st.integers(0, 99))
@torch.inference_mode()
def test_logits_do_not_depend_on_the_cut(steps: list[list[int]], seed: int) -> None:
    model = lively(layers=1)
    lengths = tuple(max(1, sum(step[index] for step in steps)) for index in range(3))
    steps = steps if all(any(step[i] for step in steps) for i in range(3)) else [*steps, [1, 1, 1]]
    lengths = tuple(sum(step[index] for step in steps) for index in range(3))
    tokens = tokens_of(lengths)
    tables, blocks = scattered(lengths, 4, seed)
    cache = KVCache(model.config, blocks, torch.float32, torch.device("cpu"), 4)
    steps = [step for step in steps if any(step)]
    for got, ids in zip(run(model, cache, tokens, tables, steps), tokens, strict=True):
        assert torch.allclose(got, uncached(model, ids), atol=1e-4)


@pytest.mark.parametrize("bits", [None, 8])
@torch.inference_mode()
def test_single_tokens_get_what_the_plain_way_gives(bits: Literal[8] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(kv_heads=2)
    common = tokens_of((18,))[0]
    tokens = [[*common, *own] for own in tokens_of((6, 9, 14))] + [tokens_of((30,))[0]]
    tables, blocks = scattered(tuple(map(len, tokens)), 4, 0)
    tables[1][:4] = tables[2][:4] = tables[0][:4]
    logits = []
    for by_rows in (True, False):
        monkeypatch.setattr("llmctl.inference.kernel.serves_heads", lambda _, answer=by_rows: answer)
        cache = KVCache(model.config, blocks, torch.float32, torch.device("cpu"), 4, bits)
        for index, start in enumerate((0, 16, 16, 0)):  # the first one fills the blocks of the others
            span = Span(tables[index], start, len(tokens[index]) - 1 - start)
            row = torch.tensor([tokens[index][span.start : span.length]])
            model(row, torch.arange(span.start, span.length)[None], cache.attend([span]))
        spans = [Span(table, len(ids) - 1, 1) for table, ids in zip(tables, tokens, strict=True)]
        order = step_order(spans)
        attend = cache.attend([spans[index] for index in order])
        assert (attend.rows is not None, bool(attend.groups)) == (by_rows, not by_rows)
        row = torch.tensor([[tokens[index][-1] for index in order]])
        places = torch.tensor([[len(tokens[index]) - 1 for index in order]])
        logits.append(model.logits(model(row, places, attend))[0])
    assert torch.allclose(*logits, atol=1e-4)
    if bits is None:
        for place, index in enumerate(order):
            assert torch.allclose(logits[0][place], uncached(model, tokens[index])[-1], atol=2e-4)


def test_the_cache_takes_what_is_asked_for_and_one_context_at_least() -> None:
    config = lively().config  # a context of 96
    place = torch.device("cpu")
    assert cache_for(config, 3, None, torch.float32, place).blocks == 18
    assert cache_for(config, 3, 1000, torch.float32, place).blocks == 63
    assert cache_for(config, 3, 5, torch.float32, place).blocks == 6
