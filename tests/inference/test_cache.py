"""Cached and uncached logits are the same, row by row."""

import torch

from llmctl.inference.cache import KVCache
from llmctl.model.attention import packed
from tests.inference.conftest import VOCAB, lively


def test_cached_logits_equal_uncached() -> None:
    model = lively(kv_heads=2)
    tokens = torch.randint(0, VOCAB, (3, 20), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(20).expand(3, 20)
    prompts = [7, 4, 1]  # row 0 gets 13 single steps, row 1 sixteen, row 2 nineteen
    with torch.inference_mode():
        whole = model.logits(model(tokens, positions, packed(torch.zeros(3, 20))))
        cache = KVCache(model.config, 4, 20, torch.float32, torch.device("cpu"))
        first = model.logits(model(tokens[:, :7], positions[:, :7], cache.prefill(0, 3)))
        for row, length in enumerate(prompts):
            assert torch.allclose(first[row, :length], whole[row, :length], atol=1e-4)
        lengths = list(prompts)
        while max(lengths) < 20:
            step = torch.tensor([[tokens[row, length]] for row, length in enumerate(lengths)])
            at = torch.tensor(lengths)[:, None]
            logits = model.logits(model(step, at, cache.decode(lengths)))
            for row, length in enumerate(lengths):
                assert torch.allclose(logits[row, 0], whole[row, length], atol=1e-4)
            lengths = [length + 1 for length in lengths]


def test_a_moved_row_continues_as_if_it_had_been_there() -> None:
    model = lively()
    tokens = torch.randint(0, VOCAB, (2, 10), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(10).expand(2, 10)
    with torch.inference_mode():
        whole = model.logits(model(tokens, positions, packed(torch.zeros(2, 10))))
        cache = KVCache(model.config, 2, 10, torch.float32, torch.device("cpu"))
        model(tokens[:, :9], positions[:, :9], cache.prefill(0, 2))
        cache.move(1, 0, 9)
        logits = model.logits(model(tokens[1:, 9:], positions[1:, 9:], cache.decode([9])))
    assert torch.allclose(logits[0, 0], whole[1, 9], atol=1e-4)
