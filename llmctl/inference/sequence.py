"""One sequence on its way through the engine: its tokens, its blocks of the cache, its text so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

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

    Attributes:
        tokens: the prompt and what was generated so far.
        blocks: of the cache, in order of the tokens that they hold.
        computed: how many of the tokens the cache holds; the others are still to be run.
        registered: how many of the blocks are known by what they hold.
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
    ) -> None:
        self.request = request
        self.stop_ids = stop_ids
        self.limit = limit
        self.detokenizer = detokenizer
        self.deliver = deliver
        self.matcher = matcher
        self.tokens = list(request.prompt_ids)
        self.blocks: list[int] = []
        self.computed = 0
        self.registered = 0
        self.told = False
        self.window = 1 << 30
        self.drafted = 0
        self.followers: dict[tuple[int, ...], int] = {}
        self.indexed = 0
        self.prompt_logprobs: list[TokenLogprob | None] = [None]  # nothing predicts the first token
        self.numbers = Numbers(request.seed)
        self.counts: Counter[int] = Counter()  # of the ids generated
        self.cancelled = False  # set by another thread
        self.done = False
        self._hashes: list[bytes] = []

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of the prompt are asked for."""
        return self.request.prompt_logprobs is not None

    @property
    def generated(self) -> int:
        """How many tokens were generated so far."""
        return len(self.tokens) - len(self.request.prompt_ids)

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

    def accept(self, token: int) -> tuple[str, FinishReason | None]:
        """Append a chosen token; return the text that became final and why the answer ends, if it does."""
        self.tokens.append(token)
        self.counts[token] += 1
        ended = token in self.stop_ids
        complete = self.matcher is not None and not ended and self.matcher.accept(token)
        stops = self.generated >= self.request.min_tokens
        text, stopped = ("", False) if ended else self.detokenizer.add(token, stops=stops)
        ended = ended or complete
        if not stopped and (ended or self.generated >= self.limit):
            self.done = True
            rest, stopped = self.detokenizer.finish()
            text += rest
        self.done = self.done or stopped
        reason: FinishReason = "stop" if ended or stopped else "length"
        return text, reason if self.done else None

    def rest(self) -> str:
        """The text still held back, where nothing can follow."""
        return self.detokenizer.finish()[0]
