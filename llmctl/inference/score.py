"""How likely given continuations are: the forward pass of generation, without choosing anything.

Pairs are put in the order of their ids, so that those which begin alike follow one another. What a row has in common
with the one before it is read from the cache, so a prompt with four answers, or a hundred questions behind the same
examples, run what they share once; rows of any lengths stand behind one another in a step, and nothing is padded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmctl.config.errors import UsageError
from llmctl.inference.cache import KVCache, Span
from llmctl.inference.request import Score
from llmctl.inference.runner import hidden_states
from llmctl.model.likelihood import LOGITS_AT_ONCE, cross_entropies
from llmctl.model.transformer import Transformer

Pair = tuple[Sequence[int], Sequence[int]]
BLOCK_TOKENS = 1  # of the cache: rows share whole blocks, and many prompts are short (4 ran a tenth more tokens)


@dataclass(frozen=True)
class Row:
    """Tokens that are run once for every pair that reads exactly these.

    Attributes:
        tokens: context and continuation without the last token, which predicts nothing that is asked.
        pairs: numbers of the pairs.
        needed: place of the first token whose prediction is asked for.
    """

    tokens: Sequence[int]
    pairs: tuple[int, ...]
    needed: int


class ScoreJob:
    """Pairs of context and continuation, cut into steps; its future gets their scores in the order given.

    Args:
        pairs: token ids of context and continuation, at least one each.
        batch_tokens: most tokens of one forward pass; one row is always allowed.
        context: most tokens of a pair.
        vocab_size: ids must be below it.

    Raises:
        UsageError: a pair is empty on a side, too long, or holds an id that there is none of.
    """

    def __init__(self, pairs: Sequence[Pair], batch_tokens: int, context: int, vocab_size: int) -> None:
        for index, (before, after) in enumerate(pairs):
            _check(index, before, after, context, vocab_size)
        self.future: Future[list[Score]] = Future()
        self._pairs = pairs
        self._rows = rows_of(pairs)
        self._next = 0
        self._longest = max((blocks_for(len(row.tokens)) for row in self._rows), default=0)
        self._budget = max(batch_tokens // BLOCK_TOKENS, self._longest)
        self._cache: KVCache | None = None
        self._free: list[int] = []
        self._held: list[int] = []  # blocks of the row before the next one
        self._scores: dict[int, Score] = {}
        self._finish_if_done()

    def step(self, model: Transformer) -> bool:
        """Score the rows of one forward pass; return whether they were the last."""
        if self._cache is None:
            count = self._budget + self._longest
            self._cache = KVCache(model.config, count, model.dtype, model.device, block_tokens=BLOCK_TOKENS)
            self._free = list(range(count))[::-1]
        rows, spans = self._take()
        tokens = [row.tokens[span.start : span.length] for row, span in zip(rows, spans, strict=True)]
        order, hidden = hidden_states(model, self._cache, spans, tokens)
        self._score(model, [rows[index] for index in order], [spans[index] for index in order], hidden)
        return self._finish_if_done()

    def _take(self) -> tuple[list[Row], list[Span]]:
        """The next rows with their places in the cache; blocks that no later row can share are free again."""
        rows: list[Row] = []
        spans: list[Span] = []
        used = 0
        given = list(self._held)
        while self._next < len(self._rows):
            row = self._rows[self._next]
            shared = self._shared(row)
            wanted = blocks_for(len(row.tokens)) - shared
            if rows and used + wanted > self._budget:
                break
            new = [self._free.pop() for _ in range(wanted)]
            self._held = [*self._held[:shared], *new]
            spans.append(Span(self._held, shared * BLOCK_TOKENS, len(row.tokens) - shared * BLOCK_TOKENS))
            rows.append(row)
            given += new
            used += wanted
            self._next += 1
        kept = set(self._held)
        self._free += sorted({block for block in given if block not in kept}, reverse=True)
        return rows, spans

    def _shared(self, row: Row) -> int:
        """How many blocks `row` has in common with the one before it, short of what it must predict itself."""
        if self._next == 0:
            return 0
        before = self._rows[self._next - 1].tokens
        most = min(len(before), row.needed)
        same = np.asarray(before[:most]) == np.asarray(row.tokens[:most])
        return (most if same.all() else int(same.argmin())) // BLOCK_TOKENS

    def _score(self, model: Transformer, rows: Sequence[Row], spans: Sequence[Span], hidden: Tensor) -> None:
        """Scores of the pairs of `rows`, whose hidden states stand behind one another in `hidden` [N,D]."""
        places: list[int] = []
        targets: list[int] = []
        numbers: list[int] = []
        first = 0
        for row, span in zip(rows, spans, strict=True):
            for number in row.pairs:
                before, after = self._pairs[number]
                start = first + len(before) - 1 - span.start
                places += range(start, start + len(after))
                targets += after
                numbers.append(number)
            first += span.count
        logprobs, greedy = _of_targets(model, hidden[places], torch.tensor(targets, device=hidden.device))
        start = 0
        for number in numbers:
            part = slice(start, start + len(self._pairs[number][1]))
            self._scores[number] = Score(math.fsum(logprobs[part]), all(greedy[part]), tuple(logprobs[part]))
            start = part.stop

    def _finish_if_done(self) -> bool:
        done = self._next == len(self._rows)
        if done:
            self._cache = None
            self.future.set_result([self._scores[index] for index in range(len(self._pairs))])
        return done


def _check(index: int, before: Sequence[int], after: Sequence[int], context: int, vocab_size: int) -> None:
    if not before or not after:
        side = "continuation" if before else "context"
        raise UsageError(f"pair {index} has an empty {side}", hint="a context needs one token at least, such as BOS")
    if len(before) + len(after) - 1 > context:
        raise UsageError(
            f"pair {index} has {len(before) + len(after)} tokens, the model's context is {context}",
            hint="shorten the context of the question",
        )
    if min(*before, *after) < 0 or max(*before, *after) >= vocab_size:
        raise UsageError(f"pair {index} holds a token id outside 0..{vocab_size - 1}", hint="use the model's tokenizer")


def blocks_for(tokens: int) -> int:
    """Blocks of the cache that hold so many tokens."""
    return -(-tokens // BLOCK_TOKENS)


def rows_of(pairs: Sequence[Pair]) -> list[Row]:
    """What is to be run, each once, in the order of the ids: rows that begin alike follow one another."""
    by_tokens: dict[bytes, list[int]] = {}
    for number, (before, after) in enumerate(pairs):
        # Big-endian: the order of the bytes is that of the ids.
        by_tokens.setdefault(np.array([*before, *after][:-1], dtype=">u4").tobytes(), []).append(number)
    rows = []
    for _, numbers in sorted(by_tokens.items()):
        before, after = pairs[numbers[0]]
        needed = min(len(pairs[number][0]) - 1 for number in numbers)
        rows.append(Row([*before, *after][:-1], tuple(numbers), needed))
    return rows


def _of_targets(model: Transformer, hidden: Tensor, targets: Tensor) -> tuple[list[float], list[bool]]:
    """Log-probability of each target, and whether it is the likeliest id: hidden [N,D], targets [N]."""
    likeliest: list[Tensor] = []

    def logits_of(states: Tensor) -> Tensor:
        logits = model.logits(states)  # [n,V]
        likeliest.append(logits.argmax(dim=-1))
        return logits

    losses = cross_entropies(logits_of, hidden, targets, logits_at_once=LOGITS_AT_ONCE, vocab_size=model.vocab_size)
    return (-losses).tolist(), (torch.cat(likeliest) == targets).tolist()
