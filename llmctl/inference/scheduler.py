"""Continuous batching: at every step sequences join the batch and leave it (Orca, OSDI 2022).

A step has a budget of tokens. Sequences that generate take one each, and prompts what is left, cut into chunks where
they are long (Sarathi, arXiv:2308.16369), so that no prompt keeps the others waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmctl.inference.blocks import BlockPool
from llmctl.inference.cache import cache_for
from llmctl.inference.draft import drafter_for
from llmctl.inference.options import Options
from llmctl.inference.request import Event
from llmctl.inference.runner import Part, Runner
from llmctl.inference.sequence import SequenceState
from llmctl.model.transformer import Transformer

AHEAD = 16  # most steps at once; who arrives meanwhile waits for their end
LONGEST_WORK = 1 << 32  # most multiplications of them, which take two cores some 50 ms


@dataclass
class Counts:
    """What happened since the engine began; only ever grows.

    Attributes:
        prefix_queries: tokens of prompts that were looked up among cached prefixes.
        prefix_hits: those of them that were found, so were not computed again.
        preemptions: sequences that lost their blocks to others and were put back into the queue.
        drafted: tokens that were guessed ahead.
        accepted: those of them that turned out right.
    """

    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    drafted: int = 0
    accepted: int = 0


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
        self.rows = rows
        self.cache = cache_for(model.config, rows, options.cache_tokens, model.dtype, model.device, options.cache_bits)
        self.pool = BlockPool(self.cache.blocks, self.cache.block_tokens)
        self.runner = Runner(model, self.cache)
        self.drafter = drafter_for(options.draft, self.cache) if options.draft_tokens else None
        self.counts = Counts()
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []
        self._draft_tokens = options.draft_tokens
        self._step_tokens = options.step_tokens
        self._prefix_cache = options.prefix_cache

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.running or self.waiting)

    def step(self) -> None:
        """Drop what was cancelled, let new sequences in, and run the next tokens of as many as the budget allows."""
        self._drop_cancelled()
        before, admitted = self.counts.preemptions, False
        budget = max(self._step_tokens, len(self.running))
        parts = self._continue(budget)
        if self.counts.preemptions == before:
            admitted = self._admit(parts, budget - sum(part.count for part in parts))
        steps = 0 if admitted else self._ahead(parts)
        if steps:
            self._decode([part.sequence for part in parts], steps)
        elif parts:
            self._run(self._with_drafts(parts, budget - sum(part.count for part in parts)))
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

    def _admit(self, parts: list[Part], budget: int) -> bool:
        """Add sequences from the queue to a step's parts while there are rows, tokens of the budget, and blocks.

        A sequence whose tokens are those of the part before it takes none of the budget: it is the part's twin.

        Returns:
            Whether any was added.
        """
        before = len(self.running)
        while self.waiting and len(self.running) < self.rows:
            sequence = self.waiting[0]
            twin_of = parts[-1] if parts and self._is_twin(sequence, parts[-1]) else None
            if not (self._join(sequence, twin_of.sequence) if twin_of else self._begin(sequence, budget)):
                break
            self.running.append(self.waiting.popleft())
            if self._looks_up(sequence):
                self.counts.prefix_queries += len(sequence.tokens)
                self.counts.prefix_hits += len(sequence.tokens) if twin_of else sequence.computed
            if twin_of:
                twin_of.twins.append(sequence)
                continue
            count = min(len(sequence.tokens) - sequence.computed, budget)
            parts.append(self._part(sequence, count))
            budget -= count
        return len(self.running) > before

    def _begin(self, sequence: SequenceState, budget: int) -> bool:
        """Give a sequence blocks for what a step runs of it; False, and nothing happens, if all will not find room."""
        if not budget:
            return False
        shared = self._cached_prefix(sequence)
        self.pool.share(shared)
        if self.pool.blocks_for(len(sequence.tokens)) - len(shared) > self.pool.unused:
            self.pool.release(shared)
            return False
        sequence.blocks, sequence.registered = shared, len(shared)
        sequence.computed = sequence.drafted = len(shared) * self.pool.size
        grown = self._grow(sequence, min(len(sequence.tokens), sequence.computed + budget))
        assert grown, "there are blocks for the whole prompt"
        return True

    def _is_twin(self, sequence: SequenceState, part: Part) -> bool:
        """Whether the part's step runs the last of the very tokens of a sequence that waits."""
        other = part.sequence
        return (
            part.last
            and self._looks_up(sequence)
            and sequence.tokens == other.tokens
            and sequence.request.cache_salt == other.request.cache_salt
        )

    def _join(self, sequence: SequenceState, other: SequenceState) -> bool:
        """Give a twin the full blocks of another, and one for a copy of the last; False if there is none."""
        full = len(sequence.tokens) // self.pool.size
        own = self.pool.take(self.pool.blocks_for(len(sequence.tokens)) - full)
        if own is None:
            return False
        shared = list(other.blocks[:full])
        self.pool.share(shared)
        sequence.blocks, sequence.registered = shared + own, full
        sequence.computed = sequence.drafted = full * self.pool.size
        return True

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
        if tokens <= len(sequence.blocks) * self.pool.size:
            return True
        lacking = self.pool.blocks_for(tokens) - len(sequence.blocks)
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
        sequence.blocks, sequence.computed, sequence.drafted, sequence.registered = [], 0, 0, 0

    def _part(self, sequence: SequenceState, count: int) -> Part:
        """Make known which blocks the step fills: sequences admitted to this same step may share them already."""
        self._register(sequence, sequence.computed + count)
        return Part(sequence, count)

    def _register(self, sequence: SequenceState, tokens: int) -> None:
        """Make known which blocks hold the first `tokens` tokens."""
        if self._prefix_cache and tokens // self.pool.size > sequence.registered:
            names = sequence.hashes(self.pool.size, tokens)
            for place in range(sequence.registered, len(names)):
                self.pool.register(sequence.blocks[place], names[place])
            sequence.registered = len(names)

    def _ahead(self, parts: Sequence[Part]) -> int:
        """How many tokens the kernel may choose of each sequence at once; 0 where it cannot run the step."""
        decoder = self.runner.decoder
        if decoder is None or self.drafter is not None or not parts:
            return 0
        if not all(part.generates and decoder.takes(part.sequence) for part in parts):
            return 0
        if not all(part.sequence.goes_ahead for part in parts):
            return 1
        return max(1, min(AHEAD, LONGEST_WORK // (len(parts) * decoder.weights)))

    def _decode(self, sequences: Sequence[SequenceState], steps: int) -> None:
        """Run steps in which all sequences generate and deliver what they say."""
        counts = [min(steps, sequence.limit - sequence.generated) for sequence in sequences]
        if not all(self._grow(one, one.computed + count) for one, count in zip(sequences, counts, strict=True)):
            counts = [1] * len(sequences)
        assert self.runner.decoder is not None, "see `_ahead`"
        events = self.runner.decode(self.runner.decoder, sequences, counts)
        for sequence in sequences:
            self._register(sequence, sequence.computed)
        self._tell(events)

    def _with_drafts(self, parts: list[Part], budget: int) -> list[Part]:
        """The parts with guesses behind those that generate, as many as blocks, budget and the answer's end allow."""
        if self.drafter is None:
            return parts
        self.drafter.follow(parts)
        wanted: dict[SequenceState, int] = {}
        for part in parts:
            sequence = part.sequence
            room = sequence.limit - sequence.generated - 1  # the step adds one token of its own
            count = min(self._draft_tokens, sequence.window, room, budget)
            if part.generates and count > 0 and self._grow(sequence, len(sequence.tokens) + count):
                wanted[sequence] = count
                budget -= count
        guesses = self.drafter.guess(wanted) if wanted else {}
        return [replace(part, drafts=guesses.get(part.sequence, ())) for part in parts]

    def _run(self, parts: Sequence[Part]) -> None:
        """Run a step and deliver what it says."""
        before = {part.sequence: part.sequence.computed + part.count for part in parts if part.drafts}
        events = self.runner.run(parts)
        for part in parts:
            if part.drafts:
                right, tried = part.sequence.computed - before[part.sequence], len(part.drafts)
                part.sequence.window = right + 1 if right < tried else 2 * (tried + 1)
                self.counts.drafted += tried
                self.counts.accepted += right
        self._tell(events)

    def _tell(self, events: Sequence[tuple[SequenceState, Event]]) -> None:
        """Deliver events; sequences whose last one it is are done."""
        for sequence, event in events:
            if event.finish_reason is None:
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
