"""Between the engine's thread and the event loop's: admission, events, cancellation, accounting."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from llmctl.config.serve import ServeConfig
from llmctl.inference.request import Event, Request
from llmctl.serve.backend import Asked, Backend
from llmctl.serve.errors import SERVER_ERROR, ApiError, bad_request
from llmctl.serve.metrics import Metrics
from llmctl.serve.quotas import Quotas


class Service:
    """The engine as the routes see it. All methods belong to the event loop's thread.

    Attributes:
        engine: generates.
        config: bounds.
        metrics: what was served.
        model_name: as clients name it.
        quotas: what each client may still ask for.
        stopping: set when the server is to end; new requests are refused from then on.
    """

    def __init__(self, engine: Backend, config: ServeConfig, metrics: Metrics, model_name: str) -> None:
        self.engine = engine
        self.config = config
        self.metrics = metrics
        self.model_name = model_name
        self.stopping = False
        self.live: set[Generation] = set()
        self.quotas = Quotas(config.requests_per_minute, config.tokens_per_minute)
        self._in_flight = 0

    @property
    def capacity(self) -> int:
        """Sequences that may run or wait at one time."""
        return self.config.max_running + self.config.max_waiting

    def start(
        self, requests: Sequence[Request], client: str, facts: dict[str, Any], *, with_ends: bool = False
    ) -> Generation:
        """Queue the sequences of one HTTP request, which `plan` has found to be no more than `capacity`.

        Args:
            requests: one for each sequence, with its max_tokens.
            client: whose quota is charged; cached prefixes are shared within one client only.
            facts: of this request, for the log; they grow with the answer.
            with_ends: whether the log-probability of an end token is told.

        Raises:
            ApiError: 400 where they cost more than one request may, 429 where they do not fit now or a quota is used
                up, 503 while shutting down.
        """
        if self.stopping:
            raise self._ending()
        cost, most = sum(map(_most_tokens, requests)), self.config.max_request_tokens
        if most is not None and cost > most:
            raise bad_request(
                f"the request may cost {cost} tokens and at most {most} may be asked for; lower n or max_tokens",
                "max_tokens",
            )
        if self._in_flight + len(requests) > self.capacity:
            seconds = self.config.retry_after_s
            raise ApiError(
                429,
                f"{self._in_flight} sequences run or wait and at most {self.capacity} may; try again in {seconds} s",
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(seconds)},
            )
        self.quotas.take(client, cost)
        salted = [dataclasses.replace(request, cache_salt=client) for request in requests]
        return Generation(self, salted, client, facts, with_ends=with_ends)

    def admitted(self) -> None:
        """The engine has taken one sequence."""
        self._in_flight += 1

    def released(self) -> None:
        """The engine has let go of one sequence."""
        self._in_flight -= 1

    def _ending(self) -> ApiError:
        """What is said to requests that come, or still run, when the server ends."""
        seconds = {"Retry-After": str(self.config.retry_after_s)}
        return ApiError(503, "the server is shutting down", kind=SERVER_ERROR, code="shutting_down", headers=seconds)

    def interrupt(self) -> None:
        """End every running request with an error that says why."""
        for generation in list(self.live):
            generation.fail(self._ending())

    def close(self) -> None:
        """Stop everything that still runs."""
        self.interrupt()
        for generation in list(self.live):
            generation.close()


def _most_tokens(request: Request) -> int:
    """Tokens of the prompt and of the longest answer."""
    return len(request.prompt_ids) + (request.max_tokens or 0)


class Generation:
    """The sequences of one HTTP request as one stream of `(index, event)`. Close it when its client is gone."""

    def __init__(
        self, service: Service, requests: Sequence[Request], client: str, facts: dict[str, Any], *, with_ends: bool
    ) -> None:
        self._service = service
        self._with_ends = with_ends
        self._client = client
        self._facts = facts
        facts |= {"completion_tokens": 0, "finish_reasons": [""] * len(requests)}
        if service.config.log_prompts:
            facts["answers"] = [""] * len(requests)
        self._unused = sum(request.max_tokens or 0 for request in requests)
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event | BaseException]] = asyncio.Queue()
        self._started = time.monotonic()
        self._last: dict[int, float] = {}  # when each sequence that runs had its last token
        self._open = set(range(len(requests)))
        self._handles: list[Asked] = []
        try:
            for index, request in enumerate(requests):
                self._handles.append(service.engine.submit(request, partial(self._post, index)))
                service.admitted()
        except Exception:
            for handle in self._handles:
                handle.cancel()
            raise
        if requests:
            service.live.add(self)
        service.metrics.prompt_tokens.inc(sum(len(request.prompt_ids) for request in requests))

    def _post(self, index: int, event: Event | BaseException) -> None:
        """Pass an event on to the loop; the engine's thread calls this."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._receive, index, event)

    def _receive(self, index: int, event: Event | BaseException) -> None:
        self._events.put_nowait((index, event))
        if isinstance(event, BaseException) or event.finish_reason is not None:
            self._service.released()

    def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[tuple[int, Event]]:
        while self._open:
            index, event = await self._events.get()
            if isinstance(event, BaseException):
                raise event
            self._count(index, event)
            yield index, self._visible(event)

    def _visible(self, event: Event) -> Event:
        """`event` without the log-probability of an end token: who reads no ids does not see it, as it is no text."""
        if self._with_ends or event.finish_reason != "stop" or not event.logprobs:
            return event
        ended_by_string = bool(self._service.engine.tokenizer.piece_bytes(event.token_ids[-1]))
        return event if ended_by_string else dataclasses.replace(event, logprobs=event.logprobs[:-1])

    def _count(self, index: int, event: Event) -> None:
        """Put one event into the metrics."""
        metrics, now = self._service.metrics, time.monotonic()
        count = len(event.token_ids)
        if count:
            self._unused -= count
            self._facts["completion_tokens"] += count
            metrics.generation_tokens.inc(count)
            last = self._last.get(index)
            if last is None:
                metrics.first_token.observe(now - self._started)
            else:
                for _ in range(count):
                    metrics.between_tokens.observe((now - last) / count)
            self._last[index] = now
        if "answers" in self._facts:
            self._facts["answers"][index] += event.text
        if event.finish_reason is not None:
            metrics.whole_request.observe(now - self._started)
            self._finish(index, event.finish_reason)

    def _finish(self, index: int, reason: str) -> None:
        self._open.discard(index)
        self._facts["finish_reasons"][index] = reason
        self._service.metrics.finished(reason)
        if not self._open:
            self._service.live.discard(self)
            self._service.quotas.give_back(self._client, self._unused)
            self._unused = 0

    def fail(self, error: ApiError) -> None:
        """Make the reader of this stream meet `error`."""
        self._events.put_nowait((0, error))

    def close(self, reason: str = "abort") -> None:
        """Cancel what still runs and count it as ended by `reason`; harmless when all is done."""
        for index in sorted(self._open):
            self._handles[index].cancel()
            self._finish(index, reason)
