"""What is asked of a model in an evaluation, and what it answers. A request says all that decides the answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from llmctl.config.tasks import GenerationConfig


@dataclass(frozen=True)
class Prompt:
    """What stands before the answer: a text, or a chat that the model's template writes out.

    Attributes:
        text: the text; empty where there is a chat.
        chat: (role, content) of each message.
    """

    text: str = ""
    chat: tuple[tuple[str, str], ...] = ()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat as templates take it."""
        return [{"role": role, "content": content} for role, content in self.chat]


@dataclass(frozen=True)
class Likelihood:
    """How likely is the continuation after the prompt?"""

    prompt: Prompt
    continuation: str


@dataclass(frozen=True)
class Rolling:
    """How likely is the text as a whole, in windows of the model's context?"""

    text: str


@dataclass(frozen=True)
class Generation:
    """What does the model write after the prompt?

    Attributes:
        prompt: what stands before.
        settings: how it is written.
        draw: number of the answer, where several are drawn; each has random numbers of its own.
        seed: of those numbers.
    """

    prompt: Prompt
    settings: GenerationConfig
    draw: int = 0
    seed: int = 0


Request = Likelihood | Rolling | Generation


@dataclass(frozen=True)
class Likely:
    """A log-likelihood in nats, whether greedy choice gives the same tokens, and the log-likelihood of each token."""

    logprob: float
    is_greedy: bool
    tokens: tuple[float, ...] = ()


@dataclass(frozen=True)
class Written:
    """A generated text without what ended it, and how many tokens it took."""

    text: str
    tokens: int


@dataclass(frozen=True)
class Skipped:
    """Why a request has no answer: `too_long`, `server_error`."""

    reason: str
    detail: str = ""


Answer = Likely | Written | Skipped


class Model(Protocol):
    """What answers requests.

    Attributes:
        identity: names everything about the model that decides its answers; the cache of requests is kept by it.
        at_once: how many requests are worth giving it in one call.
    """

    identity: str
    at_once: int

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers, in order."""
        ...


def key_of(request: Request) -> str:
    """Names a request in the cache."""
    content = asdict(request) | {"kind": type(request).__name__}
    if isinstance(request, Generation):
        content["settings"] = request.settings.model_dump(mode="json")
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
