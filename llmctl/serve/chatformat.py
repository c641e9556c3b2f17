"""Answers of chats as `chat.completion` and its chunks, with the calls of functions in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from llmctl.inference.request import Event
from llmctl.serve.formats import Bodies, Collected
from llmctl.serve.plan import Plan
from llmctl.serve.requests import ChatRequest
from llmctl.serve.responses import Json, chat_logprobs
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.tokens.toolcalls import Argued, Begun, CallParser, Piece, Said


class ChatFormat(Bodies):
    """`chat.completion` and its chunks."""

    def __init__(self, body: ChatRequest, plan: Plan, tokenizer: Tokenizer) -> None:
        super().__init__("chat.completion.chunk" if body.wants_stream else "chat.completion", body, plan)
        tools = plan.tools
        self._parsers = [CallParser(tools.convention, tools.names) if tools else None for _ in plan.requests]
        self._tokenizer = tokenizer
        self._with_logprobs = bool(body.logprobs)

    def opening(self) -> list[Json]:
        """One chunk per choice that names the speaker."""
        delta = {"role": "assistant", "content": ""}
        return [self.one_chunk(self._delta(index, delta, None)) for index in range(len(self._parsers))]

    def chunks(self, index: int, event: Event) -> Iterable[Json]:
        """What the assistant said and called since the last chunk; the last one says why it ends."""
        deltas = list(_deltas(self._pieces(index, event)))
        if not deltas and event.logprobs:
            deltas = [{"content": ""}]
        if not deltas and event.finish_reason:
            deltas = [{}]
        for place, delta in enumerate(deltas):
            ends = place == len(deltas) - 1
            choice = self._delta(index, delta, self._reason(index, event.finish_reason) if ends else None)
            if self._with_logprobs:
                scored = event.logprobs if place == 0 else None
                choice["logprobs"] = chat_logprobs(self._tokenizer, scored or ()) if delta and scored else None
            yield self.one_chunk(choice)

    def whole(self, choices: list[Collected]) -> Json:
        """The complete answer."""
        return self.complete([self._message(*pair) for pair in enumerate(choices)])

    def _pieces(self, index: int, event: Event) -> Sequence[Piece]:
        parser = self._parsers[index]
        if parser is None:
            return [Said(event.text)] if event.text else []
        return [*parser.feed(event.text), *(parser.finish() if event.finish_reason else ())]

    def _reason(self, index: int, reason: str | None) -> str | None:
        """OpenAI's word for an answer that ends because its calls are to be made; a cut one stays cut."""
        parser = self._parsers[index]
        return "tool_calls" if reason == "stop" and parser is not None and parser.calls else reason

    def _message(self, index: int, choice: Collected) -> Json:
        event = Event((), choice.text, "stop")
        message: Json = {"role": "assistant", "content": "", "refusal": None}
        calls: list[Json] = []
        for piece in self._pieces(index, event):
            match piece:
                case Said(text):
                    message["content"] += text
                case Begun(_, called, name):
                    calls.append({"id": called, "type": "function", "function": {"name": name, "arguments": ""}})
                case Argued(_, text):
                    calls[-1]["function"]["arguments"] += text
        if calls:
            message["tool_calls"] = calls
            message["content"] = message["content"] or None
        return {
            "index": index,
            "message": message,
            "logprobs": chat_logprobs(self._tokenizer, choice.logprobs) if self._with_logprobs else None,
            "finish_reason": self._reason(index, choice.finish_reason),
        }

    def _delta(self, index: int, delta: dict[str, Any], reason: str | None) -> Json:
        return {"index": index, "delta": delta, "finish_reason": reason}


def _deltas(pieces: Iterable[Piece]) -> Iterator[Json]:
    """One delta for each piece; a call's name comes alone, before any of its arguments."""
    for piece in pieces:
        match piece:
            case Said(text):
                yield {"content": text}
            case Begun(index, called, name):
                function = {"name": name, "arguments": ""}
                yield {"tool_calls": [{"index": index, "id": called, "type": "function", "function": function}]}
            case Argued(index, text):
                yield {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
