"""Guesses of what a sequence says next, which one step of the model checks all at once.

Speculative decoding (Leviathan et al. 2023, arXiv:2211.17192), with guesses from the sequence itself (prompt look-up,
Saxena 2023) or from a small model. A guess never changes an answer: see `Runner`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol

from llmctl.inference.cache import KVCache, Span
from llmctl.inference.runner import Part, hidden_states
from llmctl.inference.sampler import draw
from llmctl.inference.sequence import SequenceState
from llmctl.model.transformer import Transformer

LOOKED_UP = (3, 2)
"""How many last tokens are looked for earlier in the sequence, the most first."""


class Drafter(Protocol):
    """Makes guesses."""

    def follow(self, parts: Sequence[Part]) -> None:
        """Take note of the parts of a step, before the model runs them."""
        ...

    def guess(self, wanted: Mapping[SequenceState, int]) -> dict[SequenceState, list[int]]:
        """At most `wanted` tokens behind the last one of each sequence."""
        ...


class LookupDrafter:
    """What followed the last time that the sequence held the same few tokens."""

    def follow(self, parts: Sequence[Part]) -> None:
        """Nothing: the sequence itself is all there is to know."""

    def guess(self, wanted: Mapping[SequenceState, int]) -> dict[SequenceState, list[int]]:
        """See `Drafter`."""
        return {sequence: _looked_up(sequence, count) for sequence, count in wanted.items()}


def _looked_up(sequence: SequenceState, count: int) -> list[int]:
    tokens, places = sequence.tokens, sequence.followers
    for end in range(sequence.indexed, len(tokens)):  # `end` follows the few tokens in front of it
        for length in LOOKED_UP:
            if end >= length:
                places[tuple(tokens[end - length : end])] = end
    sequence.indexed = len(tokens)
    for length in LOOKED_UP:
        place = places.get(tuple(tokens[-length:]))
        if place is not None:
            period = len(tokens) - place  # what repeats itself may go on to
            return [tokens[place + offset % period] for offset in range(count)]
    return []


class ModelDrafter:
    """A small model of the same vocabulary that reads along, with a cache of its own in the same blocks.

    It guesses with the number that the choice itself will be made with, so that the better it knows the distribution
    the likelier its guess is the choice.

    Args:
        model: guesses.
        cache: of the model; as many blocks as that of the model that it guesses for.
    """

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        self._model = model
        self._cache = cache

    def follow(self, parts: Sequence[Part]) -> None:
        """Read what is new of the prompts; what is left out here is read before the next guess."""
        new = [part for part in parts if not part.generates and part.sequence.drafted == part.sequence.computed]
        if new:
            hidden_states(self._model, self._cache, [part.span for part in new], [part.tokens for part in new])
        for part in new:
            part.sequence.drafted += part.count

    def guess(self, wanted: Mapping[SequenceState, int]) -> dict[SequenceState, list[int]]:
        """See `Drafter`."""
        guesses: dict[SequenceState, list[int]] = {sequence: [] for sequence in wanted}
        for sequence in wanted:
            sequence.drafted = min(sequence.drafted, sequence.computed)  # wrong guesses are read over
        while unready := [sequence for sequence, guess in guesses.items() if len(guess) < wanted[sequence]]:
            self._guess_one(unready, guesses)
        return guesses

    def _guess_one(self, sequences: Sequence[SequenceState], guesses: Mapping[SequenceState, list[int]]) -> None:
        """One more guess for each sequence, from its tokens and the guesses so far."""
        unread = [[*sequence.tokens, *guesses[sequence]][sequence.drafted :] for sequence in sequences]
        spans = [
            Span(sequence.blocks, sequence.drafted, len(some)) for sequence, some in zip(sequences, unread, strict=True)
        ]
        order, hidden = hidden_states(self._model, self._cache, spans, unread)
        ends = list(itertools.accumulate(spans[index].count for index in order))
        turns = [sequences[index].turn(len(guesses[sequences[index]])) for index in order]
        drawn = draw(self._model.logits(hidden[[end - 1 for end in ends]]).float(), turns)
        for index, token in zip(order, drawn.tokens, strict=True):
            sequences[index].drafted = spans[index].length
            guesses[sequences[index]].append(max(token, 0))


def drafter_for(model: Transformer | None, cache: KVCache) -> Drafter:
    """The drafter for the engine of `cache`: by look-up where there is no model to guess."""
    if model is None:
        return LookupDrafter()
    mirror = KVCache(model.config, cache.blocks, model.dtype, model.device, cache.block_tokens)
    return ModelDrafter(model, mirror)
