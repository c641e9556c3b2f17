"""What stands before every route: the size and time of a body, and one count and log line per response.

Plain ASGI, so that a refused request costs nothing and a stream passes through untouched.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmctl.serve.connection import MOST_HEADER_BYTES
from llmctl.serve.errors import ApiError
from llmctl.serve.metrics import Metrics

log = logging.getLogger("llmctl.serve")


class BodyMiddleware:
    """Reads a body whole before its route runs; 413 beyond `max_bytes`, 408 beyond `timeout_s`, 431 for long headers.

    (The HTTP parser bounds headers too, but only those that come in several pieces.)
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read, then pass on with the body at hand."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.timeout_s):
                body = await self._read(scope, receive)
        except TimeoutError:
            await ApiError(408, f"the body did not arrive within {self.timeout_s:g} s").response()(scope, receive, send)
            return
        except ApiError as refusal:
            await refusal.response()(scope, receive, send)
            return
        if body is None:
            return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self.app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None where the client left before it was whole."""
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADER_BYTES:
            raise ApiError(431, f"the headers are longer than {MOST_HEADER_BYTES} bytes", code="headers_too_large")
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if announced.isdigit() and int(announced) > self.max_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"the body is larger than {self.max_bytes} bytes; send less, or raise the server's max_body_bytes",
            code="request_too_large",
            headers={"Connection": "close"},
        )


class AccessMiddleware:
    """Counts each response and logs one line of it (`llmctl.serve`, INFO).

    As text: method, route, status, time. As JSON also who asked, and what the route put into `request.state.facts`.
    Headers are never logged, of paths only the declared ones, of bodies nothing unless the route was told to.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Collection[str], *, as_json: bool) -> None:
        self.app = app
        self.metrics = metrics
        self.routes = frozenset(routes)
        self.as_json = as_json

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, then count."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        status = 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        state = scope.setdefault("state", {})
        state["facts"] = {}
        try:
            await self.app(scope, receive, watch)
        finally:
            route = scope["path"] if scope["path"] in self.routes else "other"
            # 499, as nginx has it: the client left before there was a response.
            self.metrics.responded(route, status or 499)
            milliseconds = round(1000 * (time.monotonic() - started), 1)
            if self.as_json:
                line = {"time": time.time(), "method": scope["method"], "route": route, "status": status or 499}
                line |= {"ms": milliseconds, "client": state.get("client", ""), **state["facts"]}
                log.info("%s", json.dumps(line, ensure_ascii=False))
            else:
                log.info("%s %s %d %.1f ms", scope["method"], route, status or 499, milliseconds)
