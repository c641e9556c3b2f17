"""Connections: a name is resolved once, every address is checked, and the checked address is the one connected to.

No proxy is used: behind one, the address that is really reached cannot be checked.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmctl.config.errors import InputError
from llmctl.data.collect.fetch.address import Url, is_public

CONNECT_TIMEOUT_S = 20.0
READ_AHEAD_BYTES = 8192


class LostError(Exception):
    """A failure that another try may mend: a broken connection, a busy server.

    Args:
        what: one line for the user, should no try succeed.
        retry_after: seconds that the server asked to wait, where it did.
    """

    def __init__(self, what: str, retry_after: float | None = None) -> None:
        super().__init__(what)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of each download.

    Attributes:
        max_bytes: larger files are refused.
        total_s: a download may take so long, its retries included.
        idle_s: the longest silence of a server.
        head_bytes: status line and headers of a response.
        redirects: hops followed.
        attempts: tries in a row that bring no new byte.
        longest_wait_s: a server that asks for a longer pause is not waited for.
    """

    max_bytes: int = 16 << 30
    total_s: float = 4 * 3600.0
    idle_s: float = 60.0
    head_bytes: int = 64 << 10
    redirects: int = 5
    attempts: int = 6
    longest_wait_s: float = 120.0


class Deadline:
    """The end of the time that one download may take."""

    def __init__(self, total_s: float) -> None:
        self.total_s = total_s
        self._end = time.monotonic() + total_s

    def remaining(self) -> float:
        """Seconds left.

        Raises:
            InputError: where none are.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise InputError(
                f"the download took longer than {self.total_s:g} s",
                hint="the same command goes on where it stopped; timeout_s gives it more time",
            )
        return left


def system_addresses(host: str, port: int) -> list[str]:
    """Every address that the system's resolver gives for `host`, in its order."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def open_socket(address: str, port: int, timeout: float) -> socket.socket:
    """A TCP connection to a numeric address."""
    return socket.create_connection((address, port), timeout)


@dataclass(frozen=True, slots=True)
class Network:
    """The way to other machines.

    Attributes:
        allow_private: whether addresses outside the public internet may be connected to.
        resolve: (host, port) to numeric addresses.
        connect: (numeric address, port, timeout in seconds) to an open socket.
    """

    allow_private: bool = False
    resolve: Callable[[str, int], list[str]] = system_addresses
    connect: Callable[[str, int, float], socket.socket] = open_socket

    def addresses(self, url: Url) -> list[str]:
        """The addresses of a URL's host, from one look-up; one bad address refuses the whole host.

        Raises:
            InputError: where the host is not known, or an address is not public and private ones are not allowed.
            LostError: where the look-up failed for now.
        """
        found = [url.host] if _is_numeric(url.host) else self._look_up(url)
        if not self.allow_private:
            for address in found:
                if not is_public(address):
                    raise InputError(
                        f"{url.origin} is not fetched: {address} is not a public address",
                        hint="--allow-private permits addresses of this machine and its networks",
                    )
        return found

    def _look_up(self, url: Url) -> list[str]:
        try:
            found = self.resolve(url.host, url.port)
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise LostError(f"the name {url.host} could not be looked up: {error.strerror}") from error
            raise InputError(f"there is no host called {url.host}", hint="check the URL") from error
        except (OSError, UnicodeError) as error:
            raise InputError(f"the name {url.host} could not be looked up: {error}", hint="check the URL") from error
        if not found:
            raise InputError(f"there is no address for {url.host}", hint="check the URL")
        return found

    def open(self, url: Url, limits: Limits, deadline: Deadline) -> Connection:
        """A connection to the URL's host, at the first of its checked addresses that answers."""
        failure: OSError | None = None
        for address in self.addresses(url):
            timeout = min(CONNECT_TIMEOUT_S, limits.idle_s, deadline.remaining())
            try:
                plain = self.connect(address, url.port, timeout)
            except OSError as error:
                failure = error
                continue
            try:
                return Connection(url, Watched(_secured(plain, url), limits, deadline))
            except BaseException:
                plain.close()
                raise
        raise LostError(f"cannot connect to {url.origin}: {failure}") from failure


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _secured(plain: socket.socket, url: Url) -> socket.socket:
    """`plain` itself, or TLS over it with the certificate checked against the URL's host, not its address."""
    if url.scheme == "http":
        return plain
    context = ssl.create_default_context()
    try:
        # A cut without TLS's own good-bye is an error: else a body without a length could be shortened unseen.
        return context.wrap_socket(plain, server_hostname=url.host, suppress_ragged_eofs=False)
    except ssl.SSLCertVerificationError as error:
        raise InputError(
            f"{url.origin} has no valid certificate: {error.verify_message}",
            hint="SSL_CERT_FILE names a file of further authorities",
        ) from error
    except OSError as error:
        raise LostError(f"no TLS connection to {url.origin}: {error}") from error


class Watched(io.RawIOBase):
    """The reading side of a socket: every read obeys the idle time, the deadline and the head's bound."""

    def __init__(self, connected: socket.socket, limits: Limits, deadline: Deadline) -> None:
        self._socket = connected
        self._limits = limits
        self._deadline = deadline
        self._head_left: int | None = limits.head_bytes

    def head_is_read(self) -> None:
        """From here on the body comes, which the reader bounds."""
        self._head_left = None

    def send(self, data: Any) -> None:
        """Send all of a request."""
        self._socket.settimeout(min(self._limits.idle_s, self._deadline.remaining()))
        self._socket.sendall(data)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """One receive."""
        self._socket.settimeout(min(self._limits.idle_s, self._deadline.remaining()))
        count = self._socket.recv_into(buffer)
        if self._head_left is not None:
            self._head_left -= count
            if self._head_left < -READ_AHEAD_BYTES:  # what was read ahead may be body already
                raise InputError(
                    f"the server sent more than {self._limits.head_bytes} bytes of headers", hint="check the URL"
                )
        return count

    def close(self) -> None:
        """Close the socket too."""
        self._socket.close()
        super().close()


class _Wire:
    """What `http.client` takes for its socket. It closes that once the head is read; the body still comes over it."""

    def __init__(self, watched: Watched) -> None:
        self.sendall = watched.send
        self._watched = watched

    def makefile(self, *_: Any) -> io.BufferedReader:
        return io.BufferedReader(self._watched, READ_AHEAD_BYTES)

    def close(self) -> None:
        """The response closes the socket when it is closed itself."""


class Connection(http.client.HTTPConnection):
    """One request over a socket that is open already; its response owns the socket."""

    def __init__(self, url: Url, watched: Watched) -> None:
        super().__init__(url.host, url.port)
        self.default_port = 443 if url.scheme == "https" else 80  # leaves the usual port out of the Host header
        self.auto_open = 0  # never a second connection of the library's own
        self._watched = watched
        self.sock = _Wire(watched)

    def get(self, target: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Send a GET and read the head of the answer."""
        try:
            self.request("GET", target, headers={**headers, "Connection": "close"})
            response = self.getresponse()
        except BaseException:
            self._watched.close()
            raise
        self._watched.head_is_read()
        return response
