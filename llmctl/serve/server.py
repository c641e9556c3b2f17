"""From a checkpoint to a listening server, and from SIGTERM to a clean end."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from llmctl.config.errors import InputError, UsageError
from llmctl.config.serve import ServeConfig
from llmctl.inference.conversation import open_engine
from llmctl.inference.options import Options
from llmctl.serve.app import create_app
from llmctl.serve.backend import Backend
from llmctl.serve.connection import MOST_HEADER_BYTES, connection_class
from llmctl.serve.generation import Service
from llmctl.store.artifact import Artifact

# Streams that outlive the grace period are told of the shutdown; this is the time that those words get to leave.
LAST_WORDS_S = 2
IDLE_CONNECTION_S = 30

log = logging.getLogger("llmctl.serve")


def serve(checkpoint: Artifact | Path, config: ServeConfig, ready: Callable[[str], None] | None = None) -> None:
    """Serve a checkpoint until SIGTERM or SIGINT; then finish what runs and return. Writes nothing to stdout.

    Args:
        checkpoint: an artifact, or a Hugging Face directory with the tokenizer in it.
        config: where and under which bounds.
        ready: called once with the base URL, `http://127.0.0.1:8000`, as soon as requests are answered.

    Raises:
        InputError: the checkpoint cannot be opened.
        UsageError: the address cannot be listened on, or the key's environment variable is not set.
    """
    directory = checkpoint.data if isinstance(checkpoint, Artifact) else checkpoint
    check_certificate(config)
    listener = listen(config)
    try:
        engine = open_backend(directory, config)
        try:
            app = create_app(engine, config, config.model_name or default_name(checkpoint))
            run_app(app, config, listener, ready)
        finally:
            engine.close()
    finally:
        listener.close()


def open_backend(directory: Path, config: ServeConfig) -> Backend:
    """The engine that the configuration names, over a checkpoint."""
    if config.engine == "vllm":
        from llmctl.serve.vllm import VllmEngine

        return VllmEngine(directory, config)
    return open_engine(
        directory,
        device=config.device,
        precision=config.precision,
        max_running=config.max_running,
        options=options_of(config),
        draft=Path(config.draft_model) if config.draft_model else None,
    )


def options_of(config: ServeConfig) -> Options:
    """The engine's part of the configuration."""
    return Options(
        cache_tokens=config.cache_tokens,
        step_tokens=config.step_tokens,
        prefix_cache=config.prefix_cache,
        weights=config.weights,
        cache_bits=config.cache_bits,
        draft_tokens=config.draft_tokens,
    )


def log_to_stderr(*, quiet: bool = False) -> None:
    """Let the server's log go to stderr, plain lines; only warnings and errors where `quiet`."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    log.propagate = False


def default_name(checkpoint: Artifact | Path) -> str:
    """What the model is called: the artifact's name (`web.sft`), or the directory's."""
    return checkpoint.path.parent.name if isinstance(checkpoint, Artifact) else checkpoint.resolve().name


def listen(config: ServeConfig) -> socket.socket:
    """Take the address before the model is loaded, so that a port in use is known at once."""
    try:
        family, _, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        where = f"{config.host}:{config.port}"
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"{where} is in use", hint="choose another --port, or port 0 for a free one") from None
        raise UsageError(
            f"cannot listen on {where}: {error.strerror or error}", hint="choose another --host or --port"
        ) from None


def check_certificate(config: ServeConfig) -> None:
    """Refuse a certificate that no client could be shown, before the model is loaded.

    Raises:
        InputError: a file is missing, or the two are no pair.
    """
    if config.tls_cert:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(config.tls_cert, config.tls_key)
        except OSError as error:  # SSLError is one
            raise InputError(
                f"cannot use {config.tls_cert} with {config.tls_key}: {error.strerror or error}",
                hint="tls_cert and tls_key must be PEM files of one certificate and its private key",
            ) from None


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """The base URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


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
