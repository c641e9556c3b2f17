"""One connection of a client: uvicorn's HTTP/1.1, with a bound on how slowly a request may begin."""

from __future__ import annotations

import asyncio
import http
import json
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from llmctl.serve.errors import ApiError, bad_request

MOST_HEADER_BYTES = 32 << 10


class Connection(H11Protocol):
    """uvicorn leaves a connection open for as long as its next request takes to come; this one does not."""

    header_timeout_s: ClassVar[float]
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for a request."""
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """Wait on where a request has begun and its headers are not whole."""
        super().data_received(data)
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self.transport.is_closing():
            self._forget()
        elif self.timeout_keep_alive_task is None:
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._forget()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or has too large a header, gets the error object of every route."""
        self._refuse(bad_request(msg, code="invalid_http"))

    def _refuse(self, refusal: ApiError) -> None:
        """Answer what is no whole request, and close."""
        body = json.dumps(refusal.body()).encode()
        length = str(len(body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
        reason = http.HTTPStatus(refusal.status).phrase.encode()
        response = h11.Response(status_code=refusal.status, headers=headers, reason=reason)
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _await_headers(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(self.header_timeout_s, self._give_up)

    def _give_up(self) -> None:
        """End a connection whose request does not come; one that has begun to send it is told."""
        if self.conn.trailing_data[0] and self.conn.our_state is h11.IDLE:
            message = f"the headers did not arrive within {self.header_timeout_s:g} s"
            self._refuse(ApiError(408, message, code="headers_too_slow"))
        else:
            self.transport.close()

    def _forget(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


def connection_class(header_timeout_s: float) -> type[Connection]:
    """A protocol that closes a connection whose request line and headers do not come within `header_timeout_s`."""
    return type("Connection", (Connection,), {"header_timeout_s": header_timeout_s})
