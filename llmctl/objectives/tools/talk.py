"""Answers with tools in them: the policy speaks, its calls are run, and it goes on behind what they gave.

Token in, token out: what was drawn stays as it was drawn, and what a tool gave is encoded once.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llmctl.config.errors import InputError
from llmctl.config.tools import ToolsConfig
from llmctl.inference.request import Request
from llmctl.objectives.rollouts import Doubles, Drawn, Turn
from llmctl.objectives.sampling import drawn
from llmctl.objectives.tools.registry import Told, Tools
from llmctl.tokens.chat import render_tool_turn
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.tokens.toolcalls import calls_in
from llmctl.tokens.tools import convention_of

Draw = Callable[[Sequence[Request]], Sequence[Drawn]]
"""What the policy says to each request, in their order."""


@dataclass
class _Talk:
    """One answer while it grows.

    Attributes:
        request: as it was first made.
        parts: ids of its turns, each with whether the policy drew them.
        logps: of those it drew.
        turns: what was said and given.
        calls: made so far.
        truncated: whether it was cut.
    """

    request: Request
    parts: list[tuple[NDArray[np.int64], bool]] = field(default_factory=list)
    logps: list[Doubles] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    calls: int = 0
    truncated: bool = False

    @property
    def ids(self) -> list[int]:
        """All of its ids so far."""
        return [index for ids, _ in self.parts for index in ids.tolist()]

    @property
    def size(self) -> int:
        """How many of them the policy drew."""
        return sum(one.size for one in self.logps)

    def whole(self) -> Drawn:
        """The answer, now that it is over."""
        own = np.concatenate([np.full(ids.size, drew) for ids, drew in self.parts])
        return Drawn(
            np.array(self.ids, dtype=np.int64),
            np.concatenate(self.logps),
            self.turns[-1].text,
            self.truncated,
            None if own.all() else own,
            tuple(self.turns),
        )


class Talks:
    """Lets a policy call tools. Close it to end what runs beside it.

    Args:
        tokenizer: of a policy that was trained on chats.
        config: which tools, and their bounds.
        longest: most tokens of a prompt with its answer, the tools' outputs among them.

    Raises:
        InputError: the chat template cannot say what a tool gives, it is not known how the policy writes calls, or a
            tool cannot be had on this system.
    """

    def __init__(self, tokenizer: Tokenizer, config: ToolsConfig, longest: int) -> None:
        self._tokenizer, self._config, self._longest = tokenizer, config, longest
        try:
            self._convention = convention_of(tokenizer.chat_template, config.format)
        except InputError as error:
            raise InputError(error.what, hint="say tools.format=hermes or tools.format=llama3") from None
        render_tool_turn(tokenizer, ["0"])
        marks = (tokenizer.special.get(mark) for mark in (self._convention.begin, self._convention.end))
        self._spelled = tuple(mark for mark in marks if mark is not None)
        self.tools = Tools(config)
        self._calling = threading.Lock()  # a rollout may be drawn ahead while held-out prompts are answered

    def converse(self, draw: Draw, requests: Sequence[Request]) -> list[Drawn]:
        """What the policy says to each request, with its calls made, in their order."""
        talks = [_Talk(dataclasses.replace(request, spelled_ids=self._spelled)) for request in requests]
        going = talks
        while going:
            said = draw([self._next(talk) for talk in going])
            wanted = [self._heard(talk, one) for talk, one in zip(going, said, strict=True)]
            with self._calling:
                told = iter(self.tools.run([call for calls in wanted for call in calls]))
            going = [
                talk
                for talk, calls in zip(going, wanted, strict=True)
                if calls and self._goes_on(talk, [next(told) for _ in calls])
            ]
        return [talk.whole() for talk in talks]

    def close(self) -> None:
        """End the sandbox."""
        self.tools.close()

    def _next(self, talk: _Talk) -> Request:
        """What is asked of the engine: the first time the request itself, then all that was said and given so far."""
        request = talk.request
        if not talk.parts:
            return request
        assert request.max_tokens is not None, "a rollout bounds its answers"
        assert request.seed is not None, "and gives each its own numbers"
        so_far = (*request.prompt_ids, *talk.ids)
        return dataclasses.replace(
            request,
            prompt_ids=so_far,
            max_tokens=min(request.max_tokens - talk.size, self._longest - len(so_far)),
            seed=int(drawn(request.seed, len(talk.logps), np.arange(1))[0]),
        )

    def _heard(self, talk: _Talk, said: Drawn) -> list[tuple[str, str]]:
        """Add a turn of the policy; the calls in it that are to be made, none where the answer is over."""
        talk.parts.append((said.ids, True))
        talk.logps.append(said.logps)
        talk.turns.append(Turn("assistant", said.text))
        talk.truncated = said.truncated
        calls = [] if said.truncated else calls_in(said.text, self._convention, self._config.names)
        assert talk.request.max_tokens is not None, "a rollout bounds its answers"
        if talk.calls + len(calls) > self._config.calls or (calls and talk.size >= talk.request.max_tokens):
            talk.truncated = True
            return []
        talk.calls += len(calls)
        return calls

    def _goes_on(self, talk: _Talk, told: Sequence[Told]) -> bool:
        """Add what the tools gave; whether there is room for it and for a token behind it, else the answer is cut."""
        ids = np.array(render_tool_turn(self._tokenizer, [one.text for one in told]), dtype=np.int64)
        if len(talk.request.prompt_ids) + len(talk.ids) + ids.size >= self._longest:
            talk.truncated = True
            return False
        talk.parts.append((ids, False))
        talk.turns += [Turn("tool", one.text, one.failed) for one in told]
        return True
