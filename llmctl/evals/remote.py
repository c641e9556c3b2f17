"""A model behind an OpenAI-compatible server as what is evaluated: what it cannot say is counted, never guessed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from llmctl.config.errors import InputError, UsageError
from llmctl.config.evals import EvalConfig
from llmctl.config.servers import ServerConfig
from llmctl.evals.requests import Answer, Apart, Generation, Likelihood, Likely, Request, Rolling, Skipped, Written
from llmctl.pipeline.job import Progress
from llmctl.store.manifest import sha256_of

SERVER_ERROR: Final = "server_error"
BAD_ANSWER: Final = "bad_answer"
NO_LOGPROBS: Final = "no_logprobs"
BUSY = {408, 429, 500, 502, 503, 504}
ATTEMPTS = 3
WAIT_S = 0.5  # before the second attempt; twice as long before each later one
LONGEST_ANSWER_BYTES = 256 << 20
SHOWN = 200
PASSING = ("created", "permission")  # of a model's card: the time of the server's start, and ids made anew each time


class FailedError(Exception):
    """The server gave no answer.

    Args:
        why: in words, behind one of the reasons above.
        status: of HTTP; 0 where it did not come to that.
    """

    def __init__(self, why: str, status: int = 0) -> None:
        super().__init__(why)
        self.status = status

    @property
    def refuses(self) -> bool:
        """Whether it will answer no such request, however often it is asked."""
        return http.client.BAD_REQUEST <= self.status < http.client.INTERNAL_SERVER_ERROR and self.status not in BUSY


@dataclass(frozen=True)
class Connection:
    """How the server is reached.

    Attributes:
        config: its address and bounds.
        key: the secret, empty for none.
    """

    config: ServerConfig
    key: str

    @classmethod
    def of(cls, config: ServerConfig) -> Connection:
        """Check the address and read the key.

        Raises:
            UsageError: the address is none, or the variable that should hold the key is not set.
        """
        parts = urlsplit(config.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{config.url!r} is no address of a server", hint="write http://host:port/v1")
        key = os.environ.get(config.key_variable, "") if config.key_variable else ""
        if config.key_variable and not key:
            raise UsageError(f"${config.key_variable} is not set", hint="it must hold the server's key")
        return cls(config, key)

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON of an answer; what is only busy is asked again.

        Raises:
            FailedError: there is none.
        """
        for attempt in range(ATTEMPTS):
            is_last = attempt == ATTEMPTS - 1
            try:
                status, content = self._exchange(path, body)
            except FailedError:
                if is_last:
                    raise
            else:
                if is_last or status not in BUSY:
                    break
            time.sleep(WAIT_S * 2**attempt)
        text = content.decode(errors="replace")
        if status != http.client.OK:
            raise FailedError(f"{SERVER_ERROR}: HTTP {status}: {_said(text)}", status)
        try:
            return json.loads(text)
        except ValueError:
            raise FailedError(f"{BAD_ANSWER}: no JSON: {text[:SHOWN]!r}", status) from None

    def _exchange(self, path: str, body: Mapping[str, Any] | None) -> tuple[int, bytes]:
        parts = urlsplit(self.config.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self.config.timeout_s)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        try:
            content = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", parts.path.rstrip("/") + path, content, headers)
            response = connection.getresponse()
            return response.status, response.read(LONGEST_ANSWER_BYTES)
        except (http.client.HTTPException, OSError) as error:
            raise FailedError(f"{SERVER_ERROR}: {type(error).__name__}: {error}") from None
        finally:
            connection.close()


def card_of(config: ServerConfig) -> dict[str, Any]:
    """What the server says of its model, less what changes when it starts; it stands for the model's digest.

    Raises:
        InputError: it cannot be reached, or has no such model.
    """
    try:
        listed = Connection.of(config).ask("/models")
        cards = {card["id"]: card for card in listed["data"]}
    except FailedError as error:
        raise InputError(f"{config.url}: {error}", hint="is the server running, and its address that of /v1?") from None
    except (KeyError, TypeError):
        raise InputError(f"{config.url}/models lists no models", hint="the address must be that of /v1") from None
    name = config.name or next(iter(cards), "")
    if name not in cards:
        raise InputError(f"{config.url} has no model {name!r}", hint=f"it has: {', '.join(cards) or 'none'}")
    return {key: value for key, value in cards[name].items() if key not in PASSING}


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


def name_of(card: Mapping[str, Any]) -> str:
    """The server's model as the first part of an artifact's name."""
    return (re.sub(r"[^a-z0-9]+", "-", str(card["id"]).lower()).strip("-") or "server")[:40]


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


def _said(text: str) -> str:
    """The message of an error body, on one line."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        text = json.loads(text)["error"]["message"]
    return " ".join(str(text).split())[:SHOWN]
