"""A client of HTTP over a Unix socket, for one process beside us: no redirects, no pools, nothing to configure."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import h11

READ_BYTES = 1 << 16


class HttpFailure(RuntimeError):  # noqa: N818 (it is what came, and no error of ours)
    """Another status than 200.

    Args:
        status: as it came.
        body: what came with it.
    """

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status}: {body[:500].decode(errors='replace')}")
        self.status = status
        self.body = body


async def ask(socket: Path, target: str) -> bytes:
    """The body of `GET target`.

    Raises:
        HttpFailure: the status is not 200.
        OSError: nobody listens.
    """
    return b"".join([part async for part in _exchange(socket, "GET", target, b"")])


async def stream(socket: Path, target: str, body: dict[str, Any]) -> AsyncGenerator[Any]:
    """The JSON bodies of the events that `POST target` sends, until `[DONE]`.

    Close it (`contextlib.aclosing`) where it may be left earlier: that ends the connection, which stops the other side.

    Raises:
        HttpFailure: the status is not 200.
        OSError: nobody listens, or the connection broke.
    """
    held = b""
    async with contextlib.aclosing(_exchange(socket, "POST", target, json.dumps(body).encode())) as parts:
        async for part in parts:
            *frames, held = (held + part).split(b"\n\n")
            for frame in frames:
                data = frame.removeprefix(b"data: ").strip()
                if data == b"[DONE]":
                    return
                yield json.loads(data)


async def _exchange(socket: Path, method: str, target: str, body: bytes) -> AsyncGenerator[bytes]:
    """Send one request; yield the parts of the response's body. Closing it early closes the connection."""
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        connection = h11.Connection(h11.CLIENT)
        headers = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(body))}
        request = h11.Request(method=method, target=target, headers=[*headers.items(), ("Connection", "close")])
        for event in (request, h11.Data(data=body), h11.EndOfMessage()):
            writer.write(connection.send(event) or b"")
        await writer.drain()
        status, refusal = 0, b""
        while not isinstance(received := await _next(connection, reader), h11.EndOfMessage):
            if isinstance(received, h11.Response):
                status = received.status_code
            elif isinstance(received, h11.Data) and status == 200:
                yield bytes(received.data)
            elif isinstance(received, h11.Data):
                refusal += bytes(received.data)
        if status != 200:
            raise HttpFailure(status, refusal)
    finally:
        writer.close()


async def _next(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Event:
    """What comes next of a response."""
    try:
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await reader.read(READ_BYTES))
    except h11.RemoteProtocolError as error:
        raise ConnectionError(str(error)) from error
    if not isinstance(event, h11.Event) or isinstance(event, h11.ConnectionClosed):
        raise ConnectionError("the connection was closed within a response")
    return event
