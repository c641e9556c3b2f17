"""Continuous batching: at every step sequences join the batch and leave it (Orca, OSDI 2022).

A step has a budget of tokens. Sequences that generate take one each, and prompts what is left, cut into chunks where
they are long (Sarathi, arXiv:2308.16369), so that no prompt keeps the others waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmctl.inference.blocks import BlockPool
from llmctl.inference.cache import Span, cache_for, step_order
from llmctl.inference.options import Options
from llmctl.inference.request import Event
from llmctl.inference.sampler import draw, logprobs_of
from llmctl.inference.sequence import SequenceState
from llmctl.model.likelihood import LOGITS_AT_ONCE
from llmctl.model.transformer import Transformer


@dataclass
class Counts:
    """What happened since the engine began; only ever grows.

    Attributes:
        prefix_queries: tokens of prompts that were looked up among cached prefixes.
        prefix_hits: those of them that were found, so were not computed again.
        preemptions: sequences that lost their blocks to others and were put back into the queue.
    """

    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0


@dataclass(frozen=True)
class Part:
    """What a step runs of one sequence: `count` tokens from `sequence.computed` on."""

    sequence: SequenceState
    count: int

    @property
    def last(self) -> bool:
        """Whether the step runs the sequence's last token, so that the next one can be chosen."""
        return self.sequence.computed + self.count == len(self.sequence.tokens)

    def tokens(self, span: Span) -> list[int]:
        """The tokens of `span`."""
        return self.sequence.tokens[span.start : span.length]


class Scheduler:
    """The batch that runs and the queue before it. One thread at a time may use it.

    Args:
        model: generates.
        rows: most sequences in the batch.
        options: of the engine; a step never has fewer tokens than one for each sequence that generates.

    Attributes:
        running: in the order of their admission; the last is the first to lose its blocks.
    """

    def __init__(self, model: Transformer, rows: int, options: Options) -> None:
        self.model = model
        self.rows = rows
        self.cache = cache_for(model.config, rows, options.cache_tokens, model.dtype, model.device)
        self.pool = BlockPool(self.cache.blocks, self.cache.block_tokens)
        self.counts = Counts()
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []
        self._step_tokens = options.step_tokens
        self._prefix_cache = options.prefix_cache

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.running or self.waiting)

    def step(self) -> None:
        """Drop what was cancelled, let new sequences in, and run the next tokens of as many as the budget allows."""
        self._drop_cancelled()
        before = self.counts.preemptions
        budget = max(self._step_tokens, len(self.running))
        parts = self._continue(budget)
        if self.counts.preemptions == before:
            parts += self._admit(budget - sum(part.count for part in parts))
        if parts:
            self._run(parts)
        self._leave()

    def _drop_cancelled(self) -> None:
        for sequence in (*self.running, *self.waiting):
            if sequence.cancelled:
                self._end(sequence, Event((), "", "cancelled"))
        self.waiting = deque(sequence for sequence in self.waiting if not sequence.done)
        self._leave()

    def _continue(self, budget: int) -> list[Part]:
        """The next tokens of what runs, the oldest first; where blocks run out, the youngest gives up its own."""
        parts: list[Part] = []
        place = 0
        while place < len(self.running) and budget:
            sequence = self.running[place]
            count = min(len(sequence.tokens) - sequence.computed, budget)
            while not self._grow(sequence, sequence.computed + count):
                youngest = self.running.pop()
                self._preempt(youngest)
                if youngest is sequence:
                    return parts
            parts.append(self._part(sequence, count))
            budget -= count
            place += 1
        return parts

    def _admit(self, budget: int) -> list[Part]:
        """Take sequences from the queue while there are rows, tokens of the budget, and blocks for a whole prompt."""
        parts: list[Part] = []
        while self.waiting and len(self.running) < self.rows and budget:
            sequence = self.waiting[0]
            shared = self._cached_prefix(sequence)
            self.pool.share(shared)
            if self.pool.blocks_for(len(sequence.tokens)) - len(shared) > self.pool.unused:
                self.pool.release(shared)
                break
            sequence.blocks, sequence.computed = shared, len(shared) * self.pool.size
            count = min(len(sequence.tokens) - sequence.computed, budget)
            grown = self._grow(sequence, sequence.computed + count)
            assert grown, "there are blocks for the whole prompt"
            if self._looks_up(sequence):
                self.counts.prefix_queries += len(sequence.tokens)
                self.counts.prefix_hits += sequence.computed
            self.running.append(self.waiting.popleft())
            parts.append(self._part(sequence, count))
            budget -= count
        return parts

    def _looks_up(self, sequence: SequenceState) -> bool:
        """Whether a cached prefix may be used: not where every prompt token's own hidden state is asked for."""
        return self._prefix_cache and not sequence.scores_prompt

    def _cached_prefix(self, sequence: SequenceState) -> list[int]:
        """Blocks that hold a beginning of the sequence; its last token is always left to run."""
        if not self._looks_up(sequence):
            return []
        return self.pool.cached(sequence.hashes(self.pool.size, len(sequence.tokens) - 1))

    def _grow(self, sequence: SequenceState, tokens: int) -> bool:
        """Give the sequence blocks for its first `tokens` tokens; False, and nothing happens, if there are too few."""
        lacking = self.pool.blocks_for(tokens) - len(sequence.blocks)
        if lacking <= 0:
            return True
        taken = self.pool.take(lacking, sequence.blocks[-1] if sequence.blocks else None)
        if taken is not None:
            sequence.blocks = sequence.blocks + taken
        return taken is not None

    def _preempt(self, sequence: SequenceState) -> None:
        """Put a sequence back to the front of the queue; its tokens are kept and will be run again."""
        self._free(sequence)
        self.waiting.appendleft(sequence)
        self.counts.preemptions += 1

    def _free(self, sequence: SequenceState) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks, sequence.computed = [], 0

    def _part(self, sequence: SequenceState, count: int) -> Part:
        """Make known which blocks the step fills: sequences admitted to this same step may share them already."""
        if self._prefix_cache:
            names = sequence.hashes(self.pool.size, sequence.computed + count)
            for place in range(sequence.computed // self.pool.size, len(names)):
                self.pool.register(sequence.blocks[place], names[place])
        return Part(sequence, count)

    def _run(self, parts: Sequence[Part]) -> None:
        """One forward pass; choose a token for each sequence whose last token it ran."""
        spans = [Span(part.sequence.blocks, part.sequence.computed, part.count) for part in parts]
        order = step_order(spans)
        parts, spans = [parts[index] for index in order], [spans[index] for index in order]
        device = self.model.device
        tokens = [token for part, span in zip(parts, spans, strict=True) for token in part.tokens(span)]
        places = [place for span in spans for place in range(span.start, span.length)]
        hidden = self.model(
            torch.tensor([tokens], device=device), torch.tensor([places], device=device), self.cache.attend(spans)
        )[0]  # [N,D]
        ends, chosen, first = [], [], 0
        for part, span in zip(parts, spans, strict=True):
            self._prompt_logprobs(part.sequence, span, hidden[first : first + span.count])
            first += span.count
            ended = part.last
            part.sequence.computed = span.length
            if ended and part.sequence.limit == 0:
                self._end(part.sequence, Event((), "", "length", None, tuple(part.sequence.prompt_logprobs)))
            elif ended:
                ends.append(first - 1)
                chosen.append(part.sequence)
        if chosen:
            self._choose(chosen, hidden[ends])

    def _prompt_logprobs(self, sequence: SequenceState, span: Span, hidden: Tensor) -> None:
        """Log-probabilities of the prompt's tokens that those of `span` predict, where they are asked for."""
        prompt, asked = sequence.request.prompt_ids, sequence.request.prompt_logprobs
        if asked is None:
            return
        start = len(sequence.prompt_logprobs) - 1  # the first place whose successor is not scored yet
        targets = prompt[start + 1 : span.length + 1]
        at_once = max(1, LOGITS_AT_ONCE // self.model.vocab_size)
        for first in range(0, len(targets), at_once):
            some = targets[first : first + at_once]
            skipped = start - span.start + first
            logits = self.model.logits(hidden[skipped : skipped + len(some)]).float()
            sequence.prompt_logprobs += logprobs_of(logits, some, [asked] * len(some))

    def _choose(self, sequences: Sequence[SequenceState], hidden: Tensor) -> None:
        """Sample one token for each sequence from its hidden state, [B,D], and deliver it."""
        logits = self.model.logits(hidden).float()
        drawn = draw(logits, [sequence.turn() for sequence in sequences])
        for sequence, token, logprob in zip(sequences, drawn.tokens, drawn.logprobs, strict=True):
            if token < 0:
                self._end(sequence, Event((), sequence.rest(), "length"))
                continue
            text, reason = sequence.accept(token)
            prompt = tuple(sequence.prompt_logprobs) if sequence.scores_prompt and sequence.generated == 1 else None
            event = Event((token,), text, reason, None if logprob is None else (logprob,), prompt)
            if reason is None:
                sequence.deliver(event)
            else:
                self._end(sequence, event)

    def _end(self, sequence: SequenceState, event: Event) -> None:
        """Free the blocks of a sequence before its last event is out, so that whoever reads it finds them free."""
        sequence.done = True
        self._free(sequence)
        sequence.deliver(event)

    def _leave(self) -> None:
        """Remove finished sequences."""
        self.running = [sequence for sequence in self.running if not sequence.done]
