"""A model behind an OpenAI-compatible server as what is evaluated: what it cannot say is counted, never guessed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmctl.config.evals import EvalConfig
from llmctl.config.servers import ServerConfig
from llmctl.evals.requests import Answer, Apart, Generation, Likelihood, Likely, Request, Rolling, Skipped, Written
from llmctl.inference.remote import BAD_ANSWER, Connection, FailedError, card_of, name_of
from llmctl.pipeline.job import Progress
from llmctl.store.manifest import sha256_of

NO_LOGPROBS: Final = "no_logprobs"


@dataclass(frozen=True)
class Fetched:
    """What is known before an evaluation begins.

    Attributes:
        requests: where answers are kept between runs; None where they are not.
        card: what the server says of its model; None where a checkpoint is measured.
    """

    requests: Path | None = None
    card: Mapping[str, Any] | None = None


def fetch(config: EvalConfig, directory: Path, progress: Progress) -> Fetched:  # noqa: ARG001 - of every stage
    """Ask the server for its model, where there is one.

    Raises:
        InputError: it cannot be reached.
    """
    return Fetched(
        directory / "requests" if config.reuse else None, card_of(config.server) if config.server.url else None
    )


def sources(config: EvalConfig, fetched: Fetched) -> tuple[str, dict[str, str]]:  # noqa: ARG001 - of every stage
    """The default name and the digest of the server's model: of all that it says of it, as `card_of` gives it."""
    if fetched.card is None:
        return "", {}
    return f"{name_of(fetched.card)}.eval", {"server": sha256_of(dict(fetched.card))}


class RemoteModel:
    """A server that answers requests.

    Args:
        config: its address and bounds.
        card: of the model, as `card_of` gives it.
        at_once: requests that are under way at a time.
    """

    def __init__(self, config: ServerConfig, card: Mapping[str, Any], at_once: int) -> None:
        self.identity = f"{config.url}:{json.dumps(card, sort_keys=True)}"
        self.at_once = self.texts_at_once = 4 * at_once
        self._connection, self._name, self._threads = Connection.of(config), str(card["id"]), at_once

    def close(self) -> None:
        """Leave the server."""
        self._connection.close()

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers, in order; `Skipped` with the reason where the server gives none that makes sense."""
        with ThreadPoolExecutor(self._threads) as threads:
            return list(threads.map(self._one, requests))

    def _one(self, request: Request) -> Answer:
        try:
            if isinstance(request, Generation):
                return self._written(request)
            return self._likely(request)
        except FailedError as error:
            reason, _, detail = str(error).partition(": ")
            return Skipped(reason, detail)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            return Skipped(BAD_ANSWER, f"{type(error).__name__}: {error}")

    def _likely(self, request: Likelihood | Rolling) -> Answer:
        if isinstance(request, Likelihood) and request.prompt.chat:
            return Skipped(NO_LOGPROBS, "a server scores no continuation of a chat")
        if isinstance(request, Apart):
            return Skipped(NO_LOGPROBS, "a server does not say which tokens several texts share")
        before = request.prompt.text.rstrip() if isinstance(request, Likelihood) else ""
        text = request.prompt.text + request.continuation if isinstance(request, Likelihood) else request.text
        body = {"model": self._name, "prompt": text, "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}
        scores = self._connection.ask("/completions", body)["choices"][0]["logprobs"]
        if not scores:
            return Skipped(NO_LOGPROBS, "the server gives no log-probabilities of a prompt (echo with logprobs)")
        places, values, tops = scores["text_offset"], scores["token_logprobs"], scores["top_logprobs"]
        inside = [at for at, place in enumerate(places) if place >= len(before)]
        tokens = [values[at] for at in inside]
        if not tokens or None in tokens:
            return Skipped(NO_LOGPROBS, "the first token has no log-probability: the server puts none before it")
        if not all(isinstance(value, int | float) and value <= 0 for value in tokens):
            return Skipped(BAD_ANSWER, "a log-probability is no number up to 0")
        greedy = all(values[at] >= max(tops[at].values()) for at in inside)
        return Likely(float(sum(tokens)), greedy, tuple(map(float, tokens)))

    def _written(self, request: Generation) -> Answer:
        text, tokens, is_cut = self._completed(request, request.prompt.text, request.settings.max_gen_toks)
        if request.ending is not None and is_cut and not request.prompt.chat:
            behind = request.prompt.text + text + request.ending.cue
            said, more, _ = self._completed(request, behind, request.ending.tokens)
            text, tokens = text + request.ending.cue + said, tokens + more
        return Written(text, tokens)

    def _completed(self, request: Generation, prompt: str, most: int) -> tuple[str, int, bool]:
        """What the server writes behind `prompt`, or in the chat; how many tokens; whether their number ended it.

        Raises:
            TypeError: the answer holds no text.
        """
        settings = request.settings
        stops = [text for text in settings.until if text]
        body: dict[str, Any] = {
            "model": self._name,
            "max_tokens": most,
            "temperature": settings.temperature if settings.do_sample else 0,
            "stop": stops[:4],  # more are refused; the others cut the text here
        }
        if settings.do_sample:
            body |= {"top_p": settings.top_p, "seed": request.seed * 10_000 + request.draw}
        if request.prompt.chat:
            answer = self._connection.ask("/chat/completions", {**body, "messages": request.prompt.messages})
            choice = answer["choices"][0]
            text = choice["message"]["content"]
        else:
            answer = self._connection.ask("/completions", {**body, "prompt": prompt})
            choice = answer["choices"][0]
            text = choice["text"]
        if not isinstance(text, str):
            raise TypeError("the answer holds no text")
        whole = text
        for stop in stops:
            text = text.partition(stop)[0]
        is_cut = choice.get("finish_reason") == "length" and text == whole
        return text, int((answer.get("usage") or {}).get("completion_tokens", 0)), is_cut
