"""What is asked of a model in an evaluation, and what it answers. A request says all that decides the answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

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
class Apart(Likelihood):
    """How likely is that part of prompt and continuation which they do not have in common with other texts?

    Attributes:
        others: the texts; all are read behind the token that begins a text.
        shared: which tokens are common, those at the start or those at the end; the latter are what is scored then.
    """

    others: tuple[str, ...] = ()
    shared: Literal["start", "end"] = "start"


@dataclass(frozen=True)
class Rolling:
    """How likely is the text as a whole, in windows of the model's context?"""

    text: str


@dataclass(frozen=True)
class Ending:
    """What is made of a text that has not ended within its budget (budget forcing, arXiv:2501.19393).

    Attributes:
        cue: written behind it, so that the model says its answer.
        tokens: most tokens of that answer.
    """

    cue: str
    tokens: int


@dataclass(frozen=True)
class Generation:
    """What does the model write after the prompt?

    Attributes:
        prompt: what stands before.
        settings: how it is written.
        draw: number of the answer, where several are drawn; each has random numbers of its own.
        seed: of those numbers.
        ending: what follows where `settings.max_gen_toks` is used up; None for nothing.
    """

    prompt: Prompt
    settings: GenerationConfig
    draw: int = 0
    seed: int = 0
    ending: Ending | None = None


Request = Likelihood | Rolling | Generation


@dataclass(frozen=True)
class Likely:
    """A log-likelihood in nats, whether greedy choice gives the same tokens, and the log-likelihood of each token."""

    logprob: float
    is_greedy: bool
    tokens: tuple[float, ...] = ()


@dataclass(frozen=True)
class Written:
    """A generated text without what ended it, and how many tokens the model wrote for it."""

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
        texts_at_once: the same of those for texts, which take longer: what a call has not answered is lost to a kill.
    """

    identity: str
    at_once: int
    texts_at_once: int

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers, in order."""
        ...


def key_of(request: Request) -> str:
    """Names a request in the cache."""
    content = asdict(request) | {"kind": type(request).__name__}
    if isinstance(request, Generation):
        content["settings"] = request.settings.model_dump(mode="json")
        if request.ending is None:
            del content["ending"]
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
