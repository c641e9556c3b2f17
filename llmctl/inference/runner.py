"""One step of the model over parts of many sequences: forward pass, choice of the next tokens, what became known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmctl.inference.cache import KVCache, Span, step_order
from llmctl.inference.decoder import Decoder
from llmctl.inference.request import Event
from llmctl.inference.sampler import draw, logprobs_of
from llmctl.inference.sequence import SequenceState
from llmctl.model.likelihood import LOGITS_AT_ONCE
from llmctl.model.transformer import Transformer


@dataclass(slots=True)
class Part:
    """What a step runs of one sequence.

    Attributes:
        sequence: whose tokens.
        count: how many of them, from `sequence.computed` on.
        drafts: guesses of what follows, run behind its last token.
        twins: sequences of the very same tokens, the last of which the step runs. They choose by the same logits, and
            what the last block holds is copied to theirs, if there is room in it for what they say.
    """

    sequence: SequenceState
    count: int
    drafts: Sequence[int] = ()
    twins: list[SequenceState] = field(default_factory=list)

    @property
    def last(self) -> bool:
        """Whether the step runs the sequence's last token, so that the next one can be chosen."""
        return self.sequence.computed + self.count == len(self.sequence.tokens)

    @property
    def generates(self) -> bool:
        """Whether all but the sequence's last token is in the cache."""
        return self.count == 1 and self.last

    @property
    def span(self) -> Span:
        """Its place in the cache."""
        return Span(self.sequence.blocks, self.sequence.computed, self.count + len(self.drafts))

    @property
    def tokens(self) -> list[int]:
        """What the model reads."""
        start = self.sequence.computed
        known = self.sequence.tokens[start : start + self.count]
        return [*known, *self.drafts] if self.drafts else known


def hidden_states(
    model: Transformer, cache: KVCache, spans: Sequence[Span], tokens: Sequence[Sequence[int]]
) -> tuple[list[int], Tensor]:
    """Run the tokens of spans as one row.

    Returns:
        The places of the spans in the order in which they were run, and the hidden states of their tokens, [N,D].
    """
    order = step_order(spans)
    spans, tokens = [spans[index] for index in order], [tokens[index] for index in order]
    row = torch.tensor([[token for some in tokens for token in some]], device=model.device)
    places = [place for span in spans for place in range(span.start, span.length)]
    hidden = model(row, torch.tensor([places], device=model.device), cache.attend(spans))
    return order, hidden[0]


class Runner:
    """The model and its cache.

    Args:
        model: generates.
        cache: of the model.

    Attributes:
        decoder: runs steps in which all sequences generate; None where no kernel runs the model.
    """

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        self.model = model
        self.cache = cache
        self.decoder = Decoder(model, cache) if Decoder.fits(model, cache) else None

    def run(self, parts: Sequence[Part]) -> list[tuple[SequenceState, Event]]:
        """One forward pass; the events of the sequences whose last token it ran.

        Every sequence's `computed` grows by what is now in the cache for good: its tokens, and the drafts that turned
        out to be what is chosen.
        """
        spans, tokens = [part.span for part in parts], [part.tokens for part in parts]
        order, hidden = hidden_states(self.model, self.cache, spans, tokens)
        self._share([part for part in parts if part.twins])
        ready: list[tuple[Part, int]] = []
        events: list[tuple[SequenceState, Event]] = []
        first = 0
        for index in order:
            part, span = parts[index], spans[index]
            sequence, last = part.sequence, part.last
            if sequence.scores_prompt:
                self._score_prompt(sequence, span, hidden[first : first + span.count])
            if last and sequence.limit == 0:
                events.append((sequence, Event((), "", "length", None, tuple(sequence.prompt_logprobs))))
            elif last:
                ready.append((part, first + part.count - 1))
            ready += ((Part(twin, part.count), first + part.count - 1) for twin in part.twins)
            sequence.computed += part.count
            first += span.count
        return events + (self._choose(ready, hidden) if ready else [])

    def decode(
        self, decoder: Decoder, sequences: Sequence[SequenceState], counts: Sequence[int]
    ) -> list[tuple[SequenceState, Event]]:
        """As `run`, of sequences that generate, each of which gets up to `counts` tokens."""
        for sequence, (tokens, logprobs) in zip(sequences, decoder.run(sequences, counts), strict=True):
            sequence.accept_all(tokens, logprobs)
            sequence.computed += len(tokens)
        events = [(sequence, sequence.event()) for sequence in sequences]
        return [(sequence, event) for sequence, event in events if event is not None]

    def _share(self, parts: Sequence[Part]) -> None:
        """Give the twins of parts what the step has computed for them."""
        copies: list[tuple[int, int]] = []
        for part in parts:
            for twin in part.twins:
                twin.computed = len(twin.tokens)
                if twin.blocks[-1] != part.sequence.blocks[len(twin.blocks) - 1]:
                    copies.append((part.sequence.blocks[len(twin.blocks) - 1], twin.blocks[-1]))
        if copies:
            self.cache.copy(copies)

    def _score_prompt(self, sequence: SequenceState, span: Span, hidden: Tensor) -> None:
        """Log-probabilities of the prompt's tokens that those of `span` predict."""
        start = len(sequence.prompt_logprobs) - 1  # the first place whose successor is not scored yet
        targets = sequence.request.prompt_ids[start + 1 : span.length + 1]
        at_once = max(1, LOGITS_AT_ONCE // self.model.vocab_size)
        for first in range(0, len(targets), at_once):
            some = targets[first : first + at_once]
            skipped = start - span.start + first
            logits = self.model.logits(hidden[skipped : skipped + len(some)]).float()
            count = sequence.request.prompt_logprobs or 0
            sequence.prompt_logprobs += logprobs_of(logits, some, [count] * len(some))

    def _choose(self, ready: Sequence[tuple[Part, int]], hidden: Tensor) -> list[tuple[SequenceState, Event]]:
        """Choose the next tokens of each sequence, as many as its drafts allow.

        A draft counts where it is what is chosen in its place, by the sequence's own number for that place. So an
        answer is the same with drafts and without, drawn or greedy.

        Args:
            ready: parts and the place in `hidden` of the last token that is not a draft.
            hidden: [N,D].
        """
        rows: list[int] = []
        starts: list[int] = []  # twins choose where the part before them does
        for number, (part, place) in enumerate(ready):
            twin = number > 0 and ready[number - 1][1] == place
            starts.append(starts[-1] if twin else len(rows))
            rows += () if twin else range(place, place + 1 + len(part.drafts))
        logits = self.model.logits(hidden if len(rows) == len(hidden) else hidden[rows]).float()  # [R,V]
        active = list(range(len(ready)))
        offset = 0
        while active:
            places = [starts[index] + offset for index in active]
            table = logits if places == list(range(len(logits))) else logits[places]
            drawn = draw(table, [ready[index][0].sequence.turn() for index in active])
            for index, token, logprob in zip(active, drawn.tokens, drawn.logprobs, strict=True):
                ready[index][0].sequence.accept(token, logprob)
            active = [index for index in active if _goes_on(ready[index][0], offset)]
            offset += 1
        events = [(part.sequence, part.sequence.event()) for part, _ in ready]
        return [(sequence, event) for sequence, event in events if event is not None]


def _goes_on(part: Part, offset: int) -> bool:
    """Whether the token just chosen is the draft of its place, so that the place behind it is right too."""
    if offset >= len(part.drafts):
        return False
    sequence = part.sequence
    right = sequence.reason is None and sequence.tokens[-1] == part.drafts[offset]
    if right:
        sequence.computed += 1
    return right
