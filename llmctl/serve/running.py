"""An application on a listening socket, and from SIGTERM to a clean end."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from llmctl.config.serve import ServeConfig
from llmctl.serve.connection import MOST_HEADER_BYTES, connection_class
from llmctl.serve.generation import Service
from llmctl.serve.server import log, url_of

# Streams that outlive the grace period are told of the shutdown; this is the time that those words get to leave.
LAST_WORDS_S = 2
IDLE_CONNECTION_S = 30


def run_app(
    app: FastAPI, config: ServeConfig, listener: socket.socket, ready: Callable[[str], None] | None = None
) -> None:
    """Run `app` on `listener` until a signal, or until `app.state.stop()` from any thread."""
    if not config.is_loopback and not (config.api_key_env or config.api_key_file):
        log.warning("%s is open to other machines and no key is asked for; set api_key_env", config.host)
    server = _Server(app, config, url_of(listener, "https" if config.tls_cert else "http"), ready)
    app.state.stop = server.stop
    asyncio.run(server.serve(sockets=[listener]))


class _Server(uvicorn.Server):
    """uvicorn, but it says when it is ready, tells streams that it stops, and exits 0 on SIGTERM."""

    def __init__(self, app: FastAPI, config: ServeConfig, url: str, ready: Callable[[str], None] | None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,  # uvicorn's own would write to stdout
                access_log=False,
                server_header=False,
                http=connection_class(config.header_timeout_s),
                h11_max_incomplete_event_size=MOST_HEADER_BYTES,
                ssl_certfile=config.tls_cert or None,
                ssl_keyfile=config.tls_key or None,
                timeout_keep_alive=IDLE_CONNECTION_S,
                timeout_graceful_shutdown=LAST_WORDS_S,
            )
        )
        self._service: Service = app.state.service
        self._grace_s = config.shutdown_s
        self._url = url
        self._ready = ready
        self._last_call = math.inf

    def stop(self) -> None:
        """Stop as if signalled: take nothing more, finish what runs, end."""
        if not self._service.stopping:
            self._service.stopping = True
            self._last_call = time.monotonic() + self._grace_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets requests finish, the second does not. None is raised again: the end is a success."""
        del sig, frame
        if self._service.stopping:
            self.should_exit = self.force_exit = True
        self.stop()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second. While requests finish, new ones are still answered: with 503, and so is /ready."""
        if self._service.stopping and (not self._service.live or time.monotonic() >= self._last_call):
            self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        log.info("listening on %s", self._url)
        if self._ready is not None:
            self._ready(self._url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.interrupt()  # whoever is left is told why the stream ends
        await super().shutdown(sockets)
