"""vLLM's chunks as events of ours."""

from __future__ import annotations

from typing import Any

from llmctl.inference.detokenizer import Detokenizer
from llmctl.inference.request import Event, FinishReason, Request, TokenLogprob
from llmctl.tokens.tokenizer import Tokenizer


class Answer:
    """One answer in the making.

    Args:
        request: what was asked.
        tokenizer: the model's.
        stop_ids: ids that end it.

    Attributes:
        done: whether the last event was given.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, stop_ids: frozenset[int]) -> None:
        self.done = False
        self._request = request
        self._stop_ids = stop_ids
        self._generated = 0
        self._text = Detokenizer(tokenizer.spelled(request.spelled_ids), request.stop)

    def add(self, chunk: Any) -> Event | None:
        """What a chunk of vLLM's stream adds; None where it adds nothing.

        Raises:
            RuntimeError: it is an error, or an end that has no name here.
        """
        if "error" in chunk:
            raise RuntimeError(f"vLLM failed: {str(chunk['error'])[:500]}")
        if not chunk["choices"]:
            return None
        choice = chunk["choices"][0]
        ids, reason = choice.get("token_ids") or [], _reason(choice.get("finish_reason"))
        text, taken = "", 0
        stopped = False
        while taken < len(ids) and not stopped:
            token = ids[taken]
            taken += 1
            self._generated += 1
            if token not in self._stop_ids or reason is None or taken < len(ids):
                stops = self._generated >= self._request.min_tokens
                new, stopped = self._text.add(token, stops=stops)
                text += new
        if reason is not None and not stopped:
            rest, stopped = self._text.finish()
            text += rest
        reason = "stop" if stopped else reason
        self.done = reason is not None
        if not taken and reason is None:
            return None
        wanted = self._request.logprobs is not None
        scores = _scores(choice["logprobs"], self._request.logprobs or 0)[:taken] if wanted and taken else ()
        return Event(tuple(ids[:taken]), text, reason, tuple(scores) if wanted else None)


def _reason(given: str | None) -> FinishReason | None:
    match given:
        case None | "stop" | "length":
            return given
    raise RuntimeError(f"vLLM ended with {given!r}")


def _scores(logprobs: Any, top: int) -> list[TokenLogprob]:
    """Log-probabilities, whose tokens are written `token_id:5`."""
    scores = []
    for name, logprob, others in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        best = sorted(((_id(other), value) for other, value in (others or {}).items()), key=lambda pair: -pair[1])
        scores.append(TokenLogprob(_id(name), logprob, tuple(best[:top])))
    return scores


def _id(name: str) -> int:
    return int(name.removeprefix("token_id:"))
