"""Who is asked: a checkpoint by our engine in this process, or a model behind an OpenAI-compatible server."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from llmctl.config.errors import InputError, InterruptedRunError, LlmctlError
from llmctl.config.synth import SynthConfig
from llmctl.inference import remote
from llmctl.inference.conversation import open_engine
from llmctl.inference.engine import Engine
from llmctl.inference.remote import BAD_ANSWER, Connection, FailedError, card_of, name_of, signed
from llmctl.inference.request import Completion, Request
from llmctl.objectives.asked import Question
from llmctl.objectives.synth.said import Ask, Said
from llmctl.pipeline.job import Job
from llmctl.tokens.chat import render_prompt

NOT_THIS_ONE = {http.client.BAD_REQUEST, http.client.REQUEST_ENTITY_TOO_LARGE, http.client.UNPROCESSABLE_ENTITY}


class Teacher(Protocol):
    """What answers."""

    def check(self, asked: Sequence[tuple[Question, Ask]]) -> None:
        """Refuse prompts that cannot be asked, before any is.

        Raises:
            InputError: naming the first.
        """
        ...

    def answer(self, asks: Sequence[Ask]) -> list[list[Said]]:
        """As many answers to each as it has seeds, in order; `fault` says what is wrong with one."""
        ...


class EngineTeacher:
    """A checkpoint in this process.

    Args:
        engine: over it.
        config: how it is asked.
    """

    def __init__(self, engine: Engine, config: SynthConfig) -> None:
        self._engine, self._config = engine, config

    def check(self, asked: Sequence[tuple[Question, Ask]]) -> None:
        """Each prompt by the teacher's own template and context."""
        for question, ask in asked:
            try:
                tokens = len(render_prompt(self._engine.tokenizer, ask.messages))
            except InputError as error:
                raise InputError(f"prompt {question.id}: {error.what}", hint=error.hint) from None
            if tokens >= self._engine.context:
                raise InputError(
                    f"prompt {question.id} has {tokens} tokens and leaves no room in the context of "
                    f"{self._engine.context}",
                    hint="shorten it, or take a teacher that reads more",
                )

    def answer(self, asks: Sequence[Ask]) -> list[list[Said]]:
        """All of them at once; a prompt beyond the context is `no_room`."""
        prompts = [render_prompt(self._engine.tokenizer, ask.messages) for ask in asks]
        fits = [len(prompt) < self._engine.context for prompt in prompts]
        requests = [
            Request(
                prompt,
                max_tokens=self._config.max_new_tokens,
                temperature=self._config.temperature,
                top_p=self._config.top_p,
                seed=seed,
            )
            for prompt, ask, has_room in zip(prompts, asks, fits, strict=True)
            if has_room
            for seed in ask.seeds
        ]
        completions = iter(self._engine.generate(requests) if requests else [])
        return [
            [self._said(next(completions) if has_room else None, len(prompt)) for _ in ask.seeds]
            for prompt, ask, has_room in zip(prompts, asks, fits, strict=True)
        ]

    def _said(self, answer: Completion | None, asked: int) -> Said:
        if answer is None:
            return Said("", 0, fault="no_room")
        text = answer.text.strip()
        return Said(text, len(answer.token_ids), fault=_fault(text, answer.finish_reason), asked=asked)


class ServerTeacher:
    """A model behind a server.

    Args:
        config: how it is asked.
        connection: by which it is reached.
        card: of the model, as `card_of` gives it.
    """

    def __init__(self, config: SynthConfig, connection: Connection, card: Mapping[str, Any]) -> None:
        self._config, self._connection, self._name = config, connection, str(card["id"])

    def check(self, asked: Sequence[tuple[Question, Ask]]) -> None:
        """Only the server knows what it can read."""

    def answer(self, asks: Sequence[Ask]) -> list[list[Said]]:
        """Each answer by a request of its own, as many at a time as `running` says.

        Raises:
            InputError: the server lets nobody in.
            InterruptedRunError: it is gone, or busy for long.
        """
        with ThreadPoolExecutor(self._config.running) as threads:
            every = [(ask, seed) for ask in asks for seed in ask.seeds]
            said = iter(list(threads.map(self._one, every)))  # where one raises, no further one is asked
        return [[next(said) for _ in ask.seeds] for ask in asks]

    def _one(self, one: tuple[Ask, int]) -> Said:
        (ask, seed), config = one, self._config
        body = {
            "model": self._name,
            "messages": [dict(message) for message in ask.messages],
            "max_tokens": config.max_new_tokens,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "seed": signed(seed),
        }
        try:
            answer = self._connection.ask("/chat/completions", body)
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            text, reason = str(choice["message"]["content"] or "").strip(), str(choice["finish_reason"])
            asked, tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        except FailedError as error:
            if error.status in (*NOT_THIS_ONE, http.client.OK):
                return Said("", 0, fault="refused", missing=str(error))
            kind: type[LlmctlError] = InputError if error.refuses else InterruptedRunError
            hint = "what was answered is kept: the same command goes on"
            raise kind(f"{config.server.url}: {error}", hint=hint) from None
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            return Said("", 0, fault="refused", missing=f"{BAD_ANSWER}: {type(error).__name__}: {error}")
        return Said(text, tokens, fault=_fault(text, reason), asked=asked)


def _fault(text: str, finish_reason: str) -> str:
    if finish_reason != "stop":
        return "cut"
    return "" if text else "empty"


@contextlib.contextmanager
def open_teacher(job: Job[SynthConfig]) -> Iterator[Teacher]:
    """The teacher that the run is given."""
    config = job.config
    if config.server.url:
        with Connection.of(config.server) as connection:
            yield ServerTeacher(config, connection, job.fetched or card_of(config.server))
        return
    with open_engine(
        job.artifact().data, device=config.device, precision=config.precision, max_running=config.running
    ) as engine:
        yield EngineTeacher(engine, config)


def sources(config: SynthConfig, card: Mapping[str, Any] | None) -> tuple[str, dict[str, str]]:
    """The default name and the digest of the server's model, where there is one."""
    name = "" if card is None else f"{name_of(card)}.synth"
    return name, remote.sources(config, card)[1]
