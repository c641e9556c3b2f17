"""How a generation becomes the bodies of each route: whole, or chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from llmctl.inference.request import Event, TokenLogprob
from llmctl.serve.plan import Plan
from llmctl.serve.requests import ChatRequest, CompletionRequest, GenerationRequest
from llmctl.serve.responses import Envelope, Json, Scored, Usage, chat_logprobs, completion_logprobs
from llmctl.tokens.tokenizer import Tokenizer


@dataclass
class Collected:
    """One choice, put together from its events."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: Sequence[TokenLogprob | None] = ()
    finish_reason: str = "length"

    def add(self, event: Event) -> None:
        """Append what an event brings."""
        self.text += event.text
        self.logprobs += event.logprobs or ()
        self.prompt_logprobs = event.prompt_logprobs or self.prompt_logprobs
        self.finish_reason = event.finish_reason or self.finish_reason


class Format(Protocol):
    """One response in the making."""

    usage: Usage

    def opening(self) -> list[Json]:
        """Chunks before the first token."""
        ...

    def chunk(self, index: int, event: Event) -> Json:
        """The chunk of one event of choice `index`."""
        ...

    def closing(self) -> list[Json]:
        """Chunks after the last token."""
        ...

    def whole(self, choices: list[Collected]) -> Json:
        """The body of a response that is not streamed."""
        ...


class _Bodies:
    """What the bodies of both routes have in common: the envelope, and where token counts go."""

    def __init__(self, kind: str, body: GenerationRequest, plan: Plan) -> None:
        self.usage = Usage(plan.prompt_tokens)
        self._envelope = Envelope(kind, body.model)
        self._wants_usage = body.wants_usage

    def closing(self) -> list[Json]:
        """The token counts, where they were asked for."""
        return [self._envelope.body([], usage=self.usage.body())] if self._wants_usage else []

    def _chunk(self, choice: Json) -> Json:
        """One chunk; OpenAI: with include_usage, every chunk but the last carries a null usage."""
        return self._envelope.body([choice], **({"usage": None} if self._wants_usage else {}))

    def _whole(self, choices: list[Json]) -> Json:
        return self._envelope.body(choices, usage=self.usage.body())


class ChatFormat(_Bodies):
    """`chat.completion` and its chunks."""

    def __init__(self, body: ChatRequest, plan: Plan, tokenizer: Tokenizer) -> None:
        super().__init__("chat.completion.chunk" if body.wants_stream else "chat.completion", body, plan)
        self._choices = range(len(plan.requests))
        self._tokenizer = tokenizer
        self._with_logprobs = bool(body.logprobs)

    def opening(self) -> list[Json]:
        """One chunk per choice that names the speaker."""
        delta = {"role": "assistant", "content": ""}
        return [self._chunk(self._delta(index, delta, None)) for index in self._choices]

    def chunk(self, index: int, event: Event) -> Json:
        """What the assistant said since the last chunk."""
        delta = {"content": event.text} if event.text or event.logprobs else {}
        choice = self._delta(index, delta, event.finish_reason)
        if self._with_logprobs:
            choice["logprobs"] = chat_logprobs(self._tokenizer, event.logprobs or ()) if delta else None
        return self._chunk(choice)

    def whole(self, choices: list[Collected]) -> Json:
        """The complete answer."""
        return self._whole([self._message(*pair) for pair in enumerate(choices)])

    def _message(self, index: int, choice: Collected) -> Json:
        return {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": chat_logprobs(self._tokenizer, choice.logprobs) if self._with_logprobs else None,
            "finish_reason": choice.finish_reason,
        }

    def _delta(self, index: int, delta: dict[str, Any], reason: str | None) -> Json:
        return {"index": index, "delta": delta, "finish_reason": reason}


class CompletionFormat(_Bodies):
    """`text_completion`, whole and in chunks."""

    def __init__(self, body: CompletionRequest, plan: Plan, tokenizer: Tokenizer) -> None:
        super().__init__("text_completion", body, plan)
        self._plan = plan
        self._tokenizer = tokenizer
        self._top = body.logprobs
        self._echo = bool(body.echo)
        self._begins = int(isinstance(body.prompt[0], str))  # begin tokens that plan_completion put in front
        self._offsets = [0] * (len(plan.prompts) * plan.choices)

    def opening(self) -> list[Json]:
        """The prompt of each choice, where it is to be echoed."""
        if self._plan.requests and (not self._echo or self._top is not None):
            return []  # an echo with log-probabilities waits for them
        reason = None if self._plan.requests else "length"
        return [
            self._chunk(self._choice(index, self._prompt(index), (), reason)) for index in range(len(self._offsets))
        ]

    def chunk(self, index: int, event: Event) -> Json:
        """The text since the last chunk."""
        scores = event.prompt_logprobs or ()
        prompt = self._prompt(index) if scores else ""
        tokens = [*self._scored(index, scores), *_pairs(event.logprobs or ())]
        return self._chunk(self._choice(index, prompt + event.text, tokens, event.finish_reason))

    def whole(self, choices: list[Collected]) -> Json:
        """The complete answer."""
        bodies = [
            self._choice(
                index,
                self._prompt(index) + choice.text,
                [*self._scored(index, choice.prompt_logprobs), *_pairs(choice.logprobs)],
                choice.finish_reason,
            )
            for index, choice in enumerate(choices)
        ]
        return self._whole(bodies)

    def _prompt(self, index: int) -> str:
        prompt = self._plan.prompts[index // self._plan.choices]
        return self._tokenizer.decode(prompt) if self._echo else ""

    def _scored(self, index: int, scores: Sequence[TokenLogprob | None]) -> list[Scored]:
        """The prompt's tokens, but for the begin token where the text got it from us."""
        prompt = self._plan.prompts[index // self._plan.choices]
        return list(zip(prompt, scores, strict=True))[self._begins :] if scores else []

    def _choice(self, index: int, text: str, tokens: Sequence[Scored], reason: str | None) -> Json:
        logprobs = None
        if self._top is not None:
            offset = self._offsets[index]
            logprobs, self._offsets[index] = completion_logprobs(
                self._tokenizer, tokens, offset, with_top=self._top > 0
            )
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _pairs(tokens: Sequence[TokenLogprob]) -> list[Scored]:
    return [(entry.token, entry) for entry in tokens]
