"""Answers that a model in training gives, by the generation engine: a function of its weights and of seeds alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmctl.inference.engine import Engine
from llmctl.inference.linears import prepared
from llmctl.inference.options import Options
from llmctl.inference.request import Completion, Request
from llmctl.model.transformer import Transformer
from llmctl.tokens.order import mix64
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.train.balance import not_training

BLOCK_TOKENS = 16  # of the KV cache
SALT = 0xD157  # so that what is drawn here has nothing to do with the order of rows


def drawn(seed: int, step: int, places: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A random 64-bit word for each place within a step; a function of these numbers alone."""
    start = mix64(np.array([(seed + SALT) % 2**64], dtype=np.uint64))
    of_step = mix64(start + np.array([step]).astype(np.uint64))
    return mix64(of_step + places.astype(np.uint64) + np.uint64(1))


def continued(
    model: Transformer, tokenizer: Tokenizer | None, requests: Sequence[Request], running: int
) -> list[Completion]:
    """What the model says to each request, in their order; the id that ends an answer is among its ids.

    An engine of its own each time: nothing is left in its cache of older weights, and what is computed depends on the
    requests alone. Requests that begin alike share what the cache holds of it.

    Args:
        model: in training.
        tokenizer: None where no text is wanted, and requests come in ids and name the ids that end them.
        requests: at least one.
        running: most of them at one time.
    """
    longest = max(len(request.prompt_ids) + (request.max_tokens or 0) for request in requests)
    blocks = -(-longest // BLOCK_TOKENS) + 1
    options = Options(cache_tokens=min(running, len(requests)) * blocks * BLOCK_TOKENS)
    with (
        not_training(model),
        Engine(prepared(model), tokenizer, max_running=running, options=options) as engine,
    ):
        return engine.generate(requests)
