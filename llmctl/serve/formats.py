"""How a generation becomes the bodies of a route: whole, or chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llmctl.inference.request import Event, TokenLogprob
from llmctl.serve.plan import Plan
from llmctl.serve.requests import CompletionRequest, GenerationRequest
from llmctl.serve.responses import Envelope, Json, Scored, Usage, completion_logprobs
from llmctl.tokens.tokenizer import Tokenizer


@dataclass
class Collected:
    """One choice, put together from its events."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: Sequence[TokenLogprob | None] = ()
    finish_reason: str = "length"

    def add(self, event: Event) -> None:
        """Append what an event brings."""
        self.text += event.text
        self.ids += event.token_ids
        self.logprobs += event.logprobs or ()
        self.prompt_logprobs = event.prompt_logprobs or self.prompt_logprobs
        self.finish_reason = event.finish_reason or self.finish_reason


class Format(Protocol):
    """One response in the making."""

    usage: Usage

    def opening(self) -> list[Json]:
        """Chunks before the first token."""
        ...

    def chunks(self, index: int, event: Event) -> Iterable[Json]:
        """The chunks of one event of choice `index`."""
        ...

    def closing(self) -> list[Json]:
        """Chunks after the last token."""
        ...

    def whole(self, choices: list[Collected]) -> Json:
        """The body of a response that is not streamed."""
        ...


class Bodies:
    """What the bodies of all routes have in common: the envelope, and where token counts go."""

    def __init__(self, kind: str, body: GenerationRequest, plan: Plan) -> None:
        self.usage = Usage(plan.prompt_tokens)
        self._envelope = Envelope(kind, body.model)
        self._wants_usage = body.wants_usage

    def closing(self) -> list[Json]:
        """The token counts, where they were asked for."""
        return [self._envelope.body([], usage=self.usage.body())] if self._wants_usage else []

    def one_chunk(self, choice: Json) -> Json:
        """One chunk; OpenAI: with include_usage, every chunk but the last carries a null usage."""
        return self._envelope.body([choice], **({"usage": None} if self._wants_usage else {}))

    def complete(self, choices: list[Json]) -> Json:
        """The body of an answer that is not streamed."""
        return self._envelope.body(choices, usage=self.usage.body())


class CompletionFormat(Bodies):
    """`text_completion`, whole and in chunks."""

    def __init__(self, body: CompletionRequest, plan: Plan, tokenizer: Tokenizer) -> None:
        super().__init__("text_completion", body, plan)
        self._plan = plan
        self._tokenizer = tokenizer
        self._top = body.logprobs
        self._echo = bool(body.echo)
        self._with_ids = plan.with_ids
        # Begin tokens that plan_completion put in front.
        self._begins = len(tokenizer.text_start) if isinstance(body.prompt[0], str) else 0
        self._offsets = [0] * (len(plan.prompts) * plan.choices)

    def opening(self) -> list[Json]:
        """The prompt of each choice, where it is to be echoed."""
        if self._plan.requests and (not self._echo or self._top is not None):
            return []  # an echo with log-probabilities waits for them
        reason = None if self._plan.requests else "length"
        return [
            self.one_chunk(self._choice(index, self._prompt(index), (), reason)) for index in range(len(self._offsets))
        ]

    def chunks(self, index: int, event: Event) -> Iterable[Json]:
        """The text since the last chunk."""
        if not (event.text or event.logprobs or event.finish_reason or (self._with_ids and event.token_ids)):
            return
        scores = event.prompt_logprobs or ()
        prompt = self._prompt(index) if scores else ""
        tokens = [*self._scored(index, scores), *_pairs(event.logprobs or ())]
        yield self.one_chunk(self._choice(index, prompt + event.text, tokens, event.finish_reason, event.token_ids))

    def whole(self, choices: list[Collected]) -> Json:
        """The complete answer."""
        bodies = [
            self._choice(
                index,
                self._prompt(index) + choice.text,
                [*self._scored(index, choice.prompt_logprobs), *_pairs(choice.logprobs)],
                choice.finish_reason,
                choice.ids,
            )
            for index, choice in enumerate(choices)
        ]
        return self.complete(bodies)

    def _prompt(self, index: int) -> str:
        prompt = self._plan.prompts[index // self._plan.choices]
        return self._tokenizer.decode(prompt) if self._echo else ""

    def _scored(self, index: int, scores: Sequence[TokenLogprob | None]) -> list[Scored]:
        """The prompt's tokens, but for the begin token where the text got it from us."""
        prompt = self._plan.prompts[index // self._plan.choices]
        return list(zip(prompt, scores, strict=True))[self._begins :] if scores else []

    def _choice(
        self, index: int, text: str, tokens: Sequence[Scored], reason: str | None, ids: Sequence[int] = ()
    ) -> Json:
        logprobs = None
        if self._top is not None:
            offset = self._offsets[index]
            logprobs, self._offsets[index] = completion_logprobs(
                self._tokenizer, tokens, offset, with_top=self._top > 0
            )
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return {**choice, "token_ids": list(ids)} if self._with_ids else choice


def _pairs(tokens: Sequence[TokenLogprob]) -> list[Scored]:
    return [(entry.token, entry) for entry in tokens]
