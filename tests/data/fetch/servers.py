"""Real servers on loopback: one that answers by a table of pages, and a canary that nobody should connect to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from llmctl.data.collect.fetch.network import open_socket

PUBLIC = "93.184.216.34"  # stands for a public host; the tests' own `connect` leads it to loopback


class Request(NamedTuple):
    path: str
    headers: Message


Handler = BaseHTTPRequestHandler
Page = Callable[[Handler], None]


class Site:
    """A web server. A page is a function of the request handler; a path without one is left to `rest`."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.rest: Page = status(404)
        self.requests: list[Request] = []
        site = self

        class Answering(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.requests.append(Request(self.path, self.headers))
                page = site.pages.get(self.path, site.rest)
                with contextlib.suppress(ConnectionError):  # the client may hang up
                    page(self)
                self.close_connection = True

            do_HEAD = do_POST = do_GET  # noqa: N815 - the library's names

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def paths(self) -> list[str]:
        """What was asked for, robots.txt left out."""
        return [request.path for request in self.requests if request.path != "/robots.txt"]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@contextlib.contextmanager
def site() -> Iterator[Site]:
    running = Site()
    try:
        yield running
    finally:
        running.close()


def reply(handler: Handler, code: int, body: bytes = b"", **headers: str) -> None:
    """Send an answer; `Content_Type` becomes Content-Type."""
    handler.send_response(code)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if "Content-Length" not in named and "Transfer-Encoding" not in named:
        named["Content-Length"] = str(len(body))
    handler.send_header("Connection", "close")
    for name, value in named.items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


def status(code: int, body: bytes = b"", **headers: str) -> Page:
    return lambda handler: reply(handler, code, body, **headers)


def redirect(location: str, code: int = 302) -> Page:
    return status(code, Location=location)


class Stored:
    """A file that a well-behaved server has: ETag, Last-Modified, ranges and conditions; it can break off.

    Attributes:
        content, etag, modified: may be changed between requests.
        cuts: after how many bytes each of the next answers breaks off.
    """

    def __init__(self, content: bytes, etag: str = '"one"', modified: str = "", **headers: str) -> None:
        self.content, self.etag, self.modified, self.headers = content, etag, modified, headers
        self.cuts: list[int] = []
        self.sent: list[int] = []  # status of each answer

    def __call__(self, handler: Handler) -> None:
        asked = handler.headers
        headers = {**self.headers, "Content_Type": self.headers.get("Content_Type", "application/octet-stream")}
        if self.etag:
            headers["ETag"] = self.etag
        if self.modified:
            headers["Last_Modified"] = self.modified
        conditions = (self.etag, self.modified)
        unchanged = (asked.get("If-None-Match") or asked.get("If-Modified-Since") or "-") in conditions
        code, start = 200, 0
        if unchanged:
            self.sent.append(304)
            handler.send_response(304)
            handler.end_headers()
            return
        if "Range" in asked and asked.get("If-Range", "-") in conditions:
            start = int(asked["Range"].removeprefix("bytes=").rstrip("-"))
            code = 206 if start < len(self.content) else 416
            headers["Content_Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        self.sent.append(code)
        body = self.content[start:] if code != 416 else b""
        headers["Content_Length"] = str(len(body))
        cut = self.cuts.pop(0) if self.cuts else len(body)
        reply(handler, code, body[:cut], **headers)


class Canary:
    """Listens on loopback, v4 and v6, and counts who connects."""

    def __init__(self) -> None:
        self.connections: list[str] = []
        first = socket.create_server(("127.0.0.1", 0))
        self.port = first.getsockname()[1]
        self._sockets = [first]
        with contextlib.suppress(OSError):  # a machine without IPv6
            self._sockets.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        self.has_v6 = len(self._sockets) == 2
        self._threads = [threading.Thread(target=self._accept, args=(one,), daemon=True) for one in self._sockets]
        for thread in self._threads:
            thread.start()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, address = listening.accept()
            except OSError:
                return
            self.connections.append(address[0])
            connection.close()

    def close(self) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()


class Wires:
    """A `connect` that leads the address PUBLIC to a loopback port, and remembers every address asked for."""

    def __init__(self, public_port: int = 0) -> None:
        self.public_port = public_port
        self.asked: list[str] = []

    def __call__(self, address: str, port: int, timeout: float) -> socket.socket:
        self.asked.append(address)
        if address == PUBLIC:
            return open_socket("127.0.0.1", self.public_port, timeout)
        return open_socket(address, port, timeout)
