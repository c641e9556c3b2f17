"""How the engine works, apart from what it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmctl.config.devices import Weights
from llmctl.model.transformer import Transformer


@dataclass(frozen=True)
class Options:
    """Left as they are, none changes an answer in float32 beyond rounding; `weights` and `cache_bits` are coarser.

    Attributes:
        cache_tokens: tokens that the KV cache holds, of all sequences together; None for what all of them can need at
            most, or less where that would take more than an eighth of the machine's memory, or half of what is free of
            an accelerator's. One context always fits. Old prefixes stay until all of it is used, so in time all is.
        step_tokens: most tokens of one step, which bounds how long a prompt keeps running sequences waiting.
        prefix_cache: whether what is still in the cache is used again by requests that begin alike.
        weights: format of the weights of a model that the engine opens itself: `plain` as they are, `int8` or `int4`.
        cache_bits: bits of one number in the KV cache: 8, or None for the model's own format.
        draft_tokens: most tokens to guess ahead in one step; 0 for none. Where guesses are wrong, fewer are made.
        draft: a small model of the same vocabulary that guesses; None to look up what followed the last time that the
            sequence held the same few tokens.
    """

    cache_tokens: int | None = None
    step_tokens: int = 512
    prefix_cache: bool = True
    weights: Weights = "plain"
    cache_bits: Literal[8] | None = None
    draft_tokens: int = 0
    draft: Transformer | None = None
