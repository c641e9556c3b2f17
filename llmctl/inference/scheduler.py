"""Continuous batching: at every step new sequences join the batch and finished ones leave it (Orca, OSDI 2022)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llmctl.inference.cache import KVCache
from llmctl.inference.detokenizer import Detokenizer
from llmctl.inference.request import Event, FinishReason, Request
from llmctl.inference.sampler import raw_logprobs, sample, uniforms
from llmctl.model.transformer import Transformer

PREFILL_TOKENS = 2048


class SequenceState:
    """One sequence that runs or waits, prompt and what was generated so far.

    Args:
        request: what was asked.
        stop_ids: ids that end it.
        limit: most tokens to generate.
        detokenizer: makes its text.
        deliver: takes its events.
    """

    def __init__(
        self,
        request: Request,
        stop_ids: frozenset[int],
        limit: int,
        detokenizer: Detokenizer,
        deliver: Callable[[Event | BaseException], None],
    ) -> None:
        self.request = request
        self.stop_ids = stop_ids
        self.limit = limit
        self.detokenizer = detokenizer
        self.deliver = deliver
        self.stream = uniforms(request.seed)
        self.generated = 0
        self.last = -1
        self.cancelled = False  # set by another thread
        self.done = False

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are in the cache: all but the last one chosen."""
        return len(self.request.prompt_ids) + self.generated - 1

    def accept(self, token: int) -> tuple[str, FinishReason | None]:
        """Append a chosen token; return the text that became final and why the answer ends, if it does."""
        self.generated += 1
        self.last = token
        ended = token in self.stop_ids
        text, stopped = ("", False) if ended else self.detokenizer.add(token)
        if not stopped and (ended or self.generated >= self.limit):
            self.done = True
            rest, stopped = self.detokenizer.finish()
            text += rest
        self.done = self.done or stopped
        reason: FinishReason = "stop" if ended or stopped else "length"
        return text, reason if self.done else None


class Scheduler:
    """The batch that runs and the queue before it. One thread at a time may use it.

    Args:
        model: generates.
        rows: most sequences in the batch.
        context: most tokens of one sequence.
    """

    def __init__(self, model: Transformer, rows: int, context: int) -> None:
        self.model = model
        self.rows = rows
        self.cache = KVCache(model.config, rows, context, model.dtype, model.device)
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []  # the sequence in place i owns row i of the cache

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.running or self.waiting)

    def step(self) -> None:
        """Drop what was cancelled, let new sequences in, and give every other one its next token."""
        self._drop_cancelled()
        before = len(self.running)
        joined = self._admit()
        if before:
            self._decode(before)
        if joined:
            self._prefill(before, joined)
        self._leave()

    def _drop_cancelled(self) -> None:
        for sequence in (*self.running, *self.waiting):
            if sequence.cancelled:
                sequence.done = True
                sequence.deliver(Event((), "", "cancelled"))
        self.waiting = deque(sequence for sequence in self.waiting if not sequence.done)
        self._leave()

    def _admit(self) -> list[SequenceState]:
        """Take from the queue what fits into free rows and into one padded prompt batch of bounded size."""
        joined: list[SequenceState] = []
        longest = 0
        while self.waiting and len(self.running) < self.rows:
            longest = max(longest, len(self.waiting[0].request.prompt_ids))
            if joined and longest * (len(joined) + 1) > PREFILL_TOKENS:
                break
            joined.append(self.waiting.popleft())
            self.running.append(joined[-1])
        return joined

    def _prefill(self, first: int, joined: Sequence[SequenceState]) -> None:
        """Run the prompts of new sequences, padded behind to one length, and choose their first tokens."""
        device = self.model.device
        lengths = [len(sequence.request.prompt_ids) for sequence in joined]
        longest = max(lengths)
        rows = [[*s.request.prompt_ids, *([0] * (longest - n))] for s, n in zip(joined, lengths, strict=True)]
        tokens = torch.tensor(rows, device=device)  # [B,T]
        positions = torch.arange(longest, device=device).expand_as(tokens)
        hidden = self.model(tokens, positions, self.cache.prefill(first, len(joined)))
        ends = torch.tensor(lengths, device=device) - 1
        self._choose(joined, hidden[torch.arange(len(joined), device=device), ends])

    def _decode(self, count: int) -> None:
        """Run the last token of each of the first `count` sequences and choose the next."""
        running = self.running[:count]
        lengths = [sequence.cached for sequence in running]
        tokens = torch.tensor([[sequence.last] for sequence in running], device=self.model.device)  # [B,1]
        positions = torch.tensor(lengths, device=self.model.device)[:, None]
        hidden = self.model(tokens, positions, self.cache.decode(lengths))
        self._choose(running, hidden[:, 0])

    def _choose(self, sequences: Sequence[SequenceState], hidden: Tensor) -> None:
        """Sample one token for each sequence from its hidden state, [B,D], and deliver it."""
        logits = self.model.logits(hidden).float()
        requests = [sequence.request for sequence in sequences]
        tokens = sample(logits, requests, [sequence.stream for sequence in sequences])
        logprobs = raw_logprobs(logits, tokens, requests)
        for sequence, token, logprob in zip(sequences, tokens, logprobs, strict=True):
            text, reason = sequence.accept(token)
            sequence.deliver(Event((token,), text, reason, None if logprob is None else (logprob,)))

    def _leave(self) -> None:
        """Remove finished sequences; the last of the batch moves into each gap."""
        for place in range(len(self.running) - 1, -1, -1):
            if not self.running[place].done:
                continue
            last = self.running.pop()
            if place < len(self.running):
                self.running[place] = last
                self.cache.move(len(self.running), place, last.cached)
