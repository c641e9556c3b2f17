"""One sequence on its way through the engine: its tokens, its blocks of the cache, its text so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from llmctl.inference.adjust import Turn
from llmctl.inference.blocks import block_hash, root_hash
from llmctl.inference.constraint import Matcher
from llmctl.inference.detokenizer import Detokenizer
from llmctl.inference.request import Event, FinishReason, Request, TokenLogprob
from llmctl.inference.sampler import Numbers


class SequenceState:
    """One sequence that runs or waits.

    Args:
        request: what was asked.
        stop_ids: ids that end it.
        limit: most tokens to generate.
        detokenizer: makes its text.
        deliver: takes its events.
        matcher: follows the form that the answer must have.
        whole: whether nobody reads the answer before its end, so that one event tells it all.

    Attributes:
        tokens: the prompt and what was generated so far.
        blocks: of the cache, in order of the tokens that they hold.
        computed: how many of the tokens the cache holds; the others are still to be run.
        registered: how many of the blocks are known by what they hold.
        reason: why the answer ended; None before.
        told: whether an event is out.
        window: how many tokens to guess at most in the next step.
        drafted: how many of the tokens a drafting model has read.
        followers: where the text behind a few tokens begins, of the first `indexed` tokens.
    """

    def __init__(
        self,
        request: Request,
        stop_ids: frozenset[int],
        limit: int,
        detokenizer: Detokenizer,
        deliver: Callable[[Event | BaseException], None],
        matcher: Matcher | None = None,
        *,
        whole: bool = False,
    ) -> None:
        self.request = request
        self.stop_ids = stop_ids
        self.limit = limit
        self.detokenizer = detokenizer
        self.deliver = deliver
        self.matcher = matcher
        self.whole = whole
        self.tokens = list(request.prompt_ids)
        self.blocks: list[int] = []
        self.computed = 0
        self.registered = 0
        self.reason: FinishReason | None = None
        self.told = False
        self.window = 1 << 30
        self.drafted = 0
        self.followers: dict[tuple[int, ...], int] = {}
        self.indexed = 0
        self.prompt_logprobs: list[TokenLogprob | None] = [None]  # nothing predicts the first token
        self.numbers = Numbers(request.seed)
        self.counts: Counter[int] = Counter()  # of the ids generated, where the choice depends on them
        self.cancelled = False  # set by another thread
        self.done = False
        self.scores_prompt = request.prompt_logprobs is not None
        self._prompt = len(self.tokens)
        self._hashes: list[bytes] = []
        self._reads_late = whole and not request.stop  # the text is made at the end, from all tokens at once
        self._untold = self._prompt  # place of the first token that no event has told
        self._text = ""
        self._logprobs: list[TokenLogprob] = []

    @property
    def generated(self) -> int:
        """How many tokens were generated so far."""
        return len(self.tokens) - self._prompt

    def hashes(self, size: int, tokens: int) -> list[bytes]:
        """Hashes of the full blocks of the first `tokens` tokens, for blocks of `size`."""
        while (len(self._hashes) + 1) * size <= tokens:
            start = len(self._hashes) * size
            before = self._hashes[-1] if self._hashes else root_hash(self.request.cache_salt)
            self._hashes.append(block_hash(before, self.tokens[start : start + size]))
        return self._hashes[: tokens // size]

    def turn(self, ahead: int = 0) -> Turn:
        """What the choice of the next token, or of one further ahead, depends on."""
        index = self.generated + ahead
        early = self.stop_ids if index < self.request.min_tokens else ()
        number = self.numbers.at(index) if self.request.temperature > 0 else 0.0
        allowed = self.matcher.allowed() if self.matcher is not None and not ahead else None
        return Turn(self.request, number, self.counts, early, allowed)

    def numbers_of(self, count: int) -> list[float]:
        """The numbers by which the next tokens are chosen."""
        index = self.generated
        return self.numbers.between(index, index + count) if self.request.temperature > 0 else [0.0] * count

    @property
    def goes_ahead(self) -> bool:
        """Whether several tokens may be chosen at once: nobody reads along, and only ids and the limit end it."""
        return self._reads_late

    def accept_all(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob]) -> None:
        """Append tokens that were chosen at once: one, or where it `goes_ahead` several, whose last alone may end it.

        Args:
            tokens: one at least.
            logprobs: as many, or none where none are asked for.
        """
        if not self._reads_late:
            self.accept(tokens[0], logprobs[0] if logprobs else None)
            return
        self.tokens += tokens
        self._logprobs += logprobs
        if tokens[-1] in self.stop_ids:
            self._end("stop")
        elif self.generated >= self.limit:
            self._end("length")

    def accept(self, token: int, logprob: TokenLogprob | None) -> None:
        """Append a chosen token; -1 says that nothing can be chosen, which cuts the answer."""
        if token < 0:
            self._end("length")
            return
        self.tokens.append(token)
        if logprob is not None:
            self._logprobs.append(logprob)
        if self.request.bends:
            self.counts[token] += 1
        generated = len(self.tokens) - self._prompt
        ended = token in self.stop_ids
        complete = self.matcher is not None and not ended and self.matcher.accept(token)
        if not (ended or self._reads_late):
            text, stopped = self.detokenizer.add(token, stops=generated >= self.request.min_tokens)
            self._text += text
            if stopped:
                self.reason, self.done = "stop", True
                return
        if ended or complete:
            self._end("stop")
        elif generated >= self.limit:
            self._end("length")

    def _end(self, reason: FinishReason) -> None:
        """No token follows: make the text that is still held back, which may hide a stop string."""
        if self._reads_late:
            last = len(self.tokens) - (self.tokens[-1] in self.stop_ids)
            self._text, _ = self.detokenizer.add(*self.tokens[self._prompt : last])
        rest, stopped = self.detokenizer.finish()
        self._text += rest
        self.reason, self.done = "stop" if stopped else reason, True

    def event(self) -> Event | None:
        """What came since the last event; None where it is to be told later."""
        if self.whole and self.reason is None:
            return None
        tokens, text, logprobs = tuple(self.tokens[self._untold :]), self._text, tuple(self._logprobs)
        prompt = tuple(self.prompt_logprobs) if self.scores_prompt and not self.told else None
        self._untold, self._text, self._logprobs, self.told = len(self.tokens), "", [], True
        return Event(tokens, text, self.reason, None if self.request.logprobs is None else logprobs, prompt)
