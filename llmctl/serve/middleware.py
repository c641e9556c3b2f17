"""What stands before every route: the key, the size and time of a body, and one count and log line per response.

Plain ASGI, so that a refused request costs nothing and a stream passes through untouched.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmctl.serve.errors import ApiError
from llmctl.serve.metrics import Metrics

OPEN_ROUTES = frozenset({"/health"})

log = logging.getLogger("llmctl.serve")


class KeyMiddleware:
    """Refuses with 401 what does not carry `Authorization: Bearer <key>`; `/health` alone stays open.

    Both keys are hashed before they are compared in constant time, so neither content nor length leaks by timing.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app = app
        self._digest = _digest(key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass."""
        if scope["type"] == "http" and scope["path"] not in OPEN_ROUTES and not self._allows(scope):
            refusal = ApiError(
                401,
                "a valid key is needed: send the header Authorization: Bearer <key>",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await refusal.response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _allows(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        return hmac.compare_digest(_digest(key.strip()), self._digest) and scheme.lower() == b"bearer"


class BodyMiddleware:
    """Reads a body whole before its route runs; 413 beyond `max_bytes`, 408 beyond `timeout_s`."""

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
    """Counts each response and logs one line of it (`llmctl.serve`, INFO): method, route, status, time.

    Neither bodies nor headers are ever logged, and of paths only the declared ones.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Collection[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.routes = frozenset(routes)

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

        try:
            await self.app(scope, receive, watch)
        finally:
            route = scope["path"] if scope["path"] in self.routes else "other"
            # 499, as nginx has it: the client left before there was a response.
            self.metrics.responded(route, status or 499)
            milliseconds = 1000 * (time.monotonic() - started)
            log.info("%s %s %d %.1f ms", scope["method"], route, status or 499, milliseconds)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
