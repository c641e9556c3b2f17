"""From a checkpoint to a server: its address, its engine, and the application in front of it.

The web's libraries are imported once the weights are being read, as that leaves Python's lock to others.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from llmctl.config.errors import InputError, UsageError
from llmctl.config.serve import ServeConfig
from llmctl.store.artifact import Artifact

if TYPE_CHECKING:  # they bring torch
    from llmctl.inference.options import Options
    from llmctl.serve.backend import Backend

SHORT_TURN_S = 1e-4
"""How long a thread keeps Python's lock from another while the server starts: what reads weights asks for it often."""

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
    with listen(config) as listener:
        with _starting(), _opened_beside(directory, config) as opening:
            from llmctl.serve.app import create_app
            from llmctl.serve.running import run_app

            engine = opening.result()
        try:
            app = create_app(engine, config, config.model_name or default_name(checkpoint))
            run_app(app, config, listener, ready)
        finally:
            engine.close()


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Short turns of threads, and no search for garbage among what imports make, which stays and is never looked at."""
    turn = sys.getswitchinterval()
    sys.setswitchinterval(SHORT_TURN_S)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        sys.setswitchinterval(turn)


@contextlib.contextmanager
def _opened_beside(directory: Path, config: ServeConfig) -> Iterator[Future[Backend]]:
    """`open_backend` on a thread of its own; at once for vLLM, beside whose start nothing else counts."""
    opening: Future[Backend] = Future()
    if config.engine == "vllm":
        opening.set_result(open_backend(directory, config))
        try:
            yield opening
        except BaseException:
            opening.result().close()
            raise
        return
    import llmctl.inference.conversation  # noqa: F401 (torch first: the weights wait for it)

    def work() -> None:
        try:
            opening.set_result(open_backend(directory, config))
        except BaseException as error:  # noqa: BLE001 (raised again where it is waited for)
            opening.set_exception(error)

    thread = threading.Thread(target=work, name="llmctl-open", daemon=True)
    thread.start()
    try:
        yield opening
    except BaseException:
        thread.join()  # the process must not end under it
        if opening.exception() is None:
            opening.result().close()
        raise


def open_backend(directory: Path, config: ServeConfig) -> Backend:
    """The engine that the configuration names, over a checkpoint."""
    if config.engine == "vllm":
        from llmctl.serve.vllm import VllmEngine

        return VllmEngine(directory, config)
    from llmctl.inference.conversation import open_engine

    return open_engine(
        directory,
        device=config.device,
        precision=config.precision,
        max_running=config.max_running,
        options=options_of(config),
        draft=Path(config.draft_model) if config.draft_model else None,
        spare_cores=1,  # which imports the rest meanwhile
    )


def options_of(config: ServeConfig) -> Options:
    """The engine's part of the configuration."""
    from llmctl.inference.options import Options

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
