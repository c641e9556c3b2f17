"""How likely given continuations are: the forward pass of generation, without choosing anything.

Pairs are put in the order of their ids, so that those which begin alike follow one another. What a row has in common
with the one before it is read from the cache, so a prompt with four answers, or a hundred questions behind the same
examples, run what they share once; answers that begin alike share that too, with its log-probabilities. Rows of any
lengths stand behind one another in a step, and nothing is padded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import accumulate, islice

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


@dataclass
class Inner:
    """How likely a row says that its own tokens are, from the one behind `needed` on, and which are likeliest."""

    logprobs: list[float]
    greedy: list[bool]


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
        self._before = Inner([], [])  # of the row before the next one that is scored
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
        firsts = dict(zip(order, accumulate((spans[index].count for index in order), initial=0), strict=False))
        self._score(model, rows, spans, [firsts[index] for index in range(len(rows))], hidden)
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
        """How many blocks `row` has in common with the one before it, short of the first token that it must predict.

        Where that one has predicted all that they have in common, only their last common token is run again, for what
        follows it is another in each.
        """
        if self._next == 0:
            return 0
        before = self._rows[self._next - 1]
        most = min(len(before.tokens), len(row.tokens))
        same = np.asarray(before.tokens[:most]) == np.asarray(row.tokens[:most])
        common = most if same.all() else int(same.argmin())
        known = common - 1 if before.needed <= row.needed else row.needed
        return min(common, max(row.needed, known)) // BLOCK_TOKENS

    def _score(
        self, model: Transformer, rows: Sequence[Row], spans: Sequence[Span], firsts: Sequence[int], hidden: Tensor
    ) -> None:
        """Scores of the pairs of `rows`, whose hidden states begin at `firsts` in `hidden` [N,D].

        A row is asked for its own tokens, where the row before has not said them, and for the last one of each pair.
        """
        places: list[int] = []
        targets: list[int] = []
        for row, span, first in zip(rows, spans, firsts, strict=True):
            start, last = max(row.needed, span.start), len(row.tokens) - 1
            places += range(first + start - span.start, first + last - span.start)
            targets += row.tokens[start + 1 :]
            places += [first + last - span.start] * len(row.pairs)
            targets += (self._pairs[number][1][-1] for number in row.pairs)
        found = zip(*_of_targets(model, hidden[places], torch.tensor(targets, device=hidden.device)), strict=True)
        previous = self._rows[self._next - len(rows) - 1] if self._next > len(rows) else None
        for row, span in zip(rows, spans, strict=True):
            inner = self._inherited(previous, row, span.start)
            for logprob, is_likeliest in islice(found, len(row.tokens) - 1 - row.needed - len(inner.logprobs)):
                inner.logprobs.append(logprob)
                inner.greedy.append(is_likeliest)
            for number, (logprob, is_likeliest) in zip(row.pairs, islice(found, len(row.pairs)), strict=True):
                behind = len(self._pairs[number][0]) - 1 - row.needed
                said = (*inner.logprobs[behind:], logprob)
                self._scores[number] = Score(math.fsum(said), all(inner.greedy[behind:]) and is_likeliest, said)
            self._before, previous = inner, row

    def _inherited(self, previous: Row | None, row: Row, start: int) -> Inner:
        """What the row before has said of the tokens that this one does not run: those up to `start`."""
        if previous is None or start <= row.needed:
            return Inner([], [])
        part = slice(row.needed - previous.needed, start - previous.needed)
        return Inner(self._before.logprobs[part], self._before.greedy[part])

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
