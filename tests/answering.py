"""A server of a test's own that speaks JSON: what it answers is up to the test."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import Any


class Answering(BaseHTTPRequestHandler):
    """Reads and writes bodies, and logs nothing; `get` and `post` say what it answers."""

    def get(self) -> None:
        """Answer a request without a body."""
        raise NotImplementedError

    def post(self, body: Any) -> None:
        """Answer a request with this body."""
        raise NotImplementedError

    def do_GET(self) -> None:
        self.get()

    def do_POST(self) -> None:
        self.post(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def say(self, status: int, body: Any) -> None:
        """Answer with a text as it is, or with anything else as JSON."""
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
