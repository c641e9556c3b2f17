"""A model behind an OpenAI-compatible server: how it is reached, asked, and known again."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, Self
from urllib.parse import urlsplit

from llmctl.config.errors import InputError, UsageError
from llmctl.config.servers import ServerConfig
from llmctl.pipeline.job import Progress
from llmctl.store.manifest import sha256_of

SERVER_ERROR: Final = "server_error"
BAD_ANSWER: Final = "bad_answer"
BUSY = {408, 429, 500, 502, 503, 504}
ATTEMPTS = 3
WAIT_S = 0.5  # before the second attempt; twice as long before each later one
KEPT_S = 15.0  # that a connection lies idle before it is closed: what lies between may have forgotten it
LONGEST_ANSWER_BYTES = 256 << 20
SHOWN = 200
PASSING = ("created", "permission")  # of a model's card: the time of the server's start, and ids made anew each time
INT64, UINT64 = 2**63, 2**64


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
    """How the server is reached, by any number of threads. Close it to close what is kept open between requests.

    Attributes:
        config: its address and bounds.
        key: the secret, empty for none.
    """

    config: ServerConfig
    key: str
    _idle: list[tuple[float, http.client.HTTPConnection]] = field(default_factory=list, repr=False, compare=False)

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
        """Status and content, through what is open already where the server has not closed it meanwhile."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        where = urlsplit(self.config.url).path.rstrip("/") + path
        content = None if body is None else json.dumps(body)
        try:
            while True:
                open_before, connection = self._opened()
                try:
                    connection.request("GET" if body is None else "POST", where, content, headers)
                    response = connection.getresponse()
                    status, answer = response.status, response.read(LONGEST_ANSWER_BYTES)
                except ConnectionError:
                    connection.close()
                    if not open_before:
                        raise
                except BaseException:
                    connection.close()
                    raise
                else:
                    break
        except (http.client.HTTPException, OSError) as error:
            raise FailedError(f"{SERVER_ERROR}: {type(error).__name__}: {error}") from None
        if response.isclosed() and not response.will_close:
            self._idle.append((time.monotonic(), connection))
        else:
            connection.close()
        return status, answer

    def _opened(self) -> tuple[bool, http.client.HTTPConnection]:
        """Whether it was open before, and what is asked through next."""
        with contextlib.suppress(IndexError):
            while True:
                put_aside, connection = self._idle.pop()
                if time.monotonic() - put_aside < KEPT_S:
                    return True, connection
                connection.close()
        parts = urlsplit(self.config.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return False, kind(parts.hostname or "", parts.port, timeout=self.config.timeout_s)

    def close(self) -> None:
        """Close what nobody is asking through."""
        while self._idle:
            self._idle.pop()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def card_of(config: ServerConfig) -> dict[str, Any]:
    """What the server says of its model, less what changes when it starts; it stands for the model's digest.

    Raises:
        InputError: it cannot be reached, or has no such model.
    """
    try:
        with Connection.of(config) as connection:
            listed = connection.ask("/models")
        cards = {card["id"]: card for card in listed["data"]}
    except FailedError as error:
        raise InputError(f"{config.url}: {error}", hint="is the server running, and its address that of /v1?") from None
    except (KeyError, TypeError):
        raise InputError(f"{config.url}/models lists no models", hint="the address must be that of /v1") from None
    name = config.name or next(iter(cards), "")
    if name not in cards:
        raise InputError(f"{config.url} has no model {name!r}", hint=f"it has: {', '.join(cards) or 'none'}")
    return {key: value for key, value in cards[name].items() if key not in PASSING}


class Asks(Protocol):
    """A configuration of what may ask a server."""

    @property
    def server(self) -> ServerConfig:
        """Without an address where none is asked."""


def fetch(config: Asks, directory: Path, progress: Progress) -> dict[str, Any] | None:  # noqa: ARG001 - of every stage
    """What the server says of its model, where there is one.

    Raises:
        InputError: it cannot be reached.
    """
    return card_of(config.server) if config.server.url else None


def sources(config: Asks, card: Mapping[str, Any] | None) -> tuple[str, dict[str, str]]:  # noqa: ARG001 - of every stage
    """No name for what is made, and the digest of the server's model."""
    return "", {} if card is None else {"server": sha256_of(dict(card))}


def name_of(card: Mapping[str, Any]) -> str:
    """The server's model as the first part of an artifact's name."""
    return (re.sub(r"[^a-z0-9]+", "-", str(card["id"]).lower()).strip("-") or "server")[:40]


def signed(seed: int) -> int:
    """A seed of 64 bits as servers take them: those from 2^63 on are negative. Our own reads the same bits back."""
    return seed if seed < INT64 else seed - UINT64


def _said(text: str) -> str:
    """The message of an error body, on one line."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        text = json.loads(text)["error"]["message"]
    return " ".join(str(text).split())[:SHOWN]
