"""GET with everything that a careful client minds: checked redirects, robots.txt, bounds, retries."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import llmctl
from llmctl.config.errors import InputError
from llmctl.data.collect.fetch.address import Url
from llmctl.data.collect.fetch.network import Deadline, Limits, LostError, Network
from llmctl.data.collect.fetch.robots import USER_AGENT, Robots

T = TypeVar("T")

REDIRECTS = {301, 302, 303, 307, 308}
BUSY = {408, 425, 429, 500, 502, 503, 504}
BLOCK_BYTES = 256 << 10
HEADERS = {
    "User-Agent": f"{USER_AGENT}/{llmctl.__version__}",
    "Accept": "*/*",
    "Accept-Encoding": "identity",  # the stored bytes, their length and their checksum are the server's own
}


class Answer:
    """A response whose head is read.

    Attributes:
        url: where it came from, after redirects.
        status, headers: as sent.
    """

    def __init__(self, url: Url, response: http.client.HTTPResponse) -> None:
        self.url = url
        self.status = response.status
        self.headers = response.headers
        self._response = response

    def blocks(self) -> Iterator[bytes]:
        """The body as it comes.

        Raises:
            LostError: where it breaks off.
        """
        with told(self.url):
            while block := self._response.read(BLOCK_BYTES):
                yield block


@contextlib.contextmanager
def told(url: Url) -> Iterator[None]:
    """Turn the failures of a connection into `LostError`."""
    try:
        yield
    except (http.client.HTTPException, OSError) as error:
        raise LostError(f"the connection to {url.origin} broke: {error or type(error).__name__}") from error


class Client:
    """Fetches from web servers. One for a whole run: it remembers each site's rules."""

    def __init__(self, limits: Limits, network: Network) -> None:
        self.limits = limits
        self.network = network
        self._robots = Robots(self._read_robots)

    @contextlib.contextmanager
    def get(self, url: Url, headers: dict[str, str], deadline: Deadline, *, robots: bool = True) -> Iterator[Answer]:
        """The answer at the end of all redirects; each hop is checked as the first URL is.

        Args:
            url: where to begin.
            headers: beside the client's own.
            deadline: for everything, the body's reading included.
            robots: whether robots.txt is asked first.

        Raises:
            InputError: where the URL, an address, a redirect or the encoding is refused.
            LostError: where the server is busy or the connection breaks.
        """
        for _ in range(self.limits.redirects + 1):
            if robots:
                self._robots.visit(url)
            connection = self.network.open(url, self.limits, deadline)
            with told(url):
                response = connection.get(url.target, {**HEADERS, **headers})
            with contextlib.closing(response):
                if response.status not in REDIRECTS:
                    _check(url, response, self.limits)
                    yield Answer(url, response)
                    return
                url = _redirected(url, response.headers.get("Location"))
        raise InputError(f"{url} is more than {self.limits.redirects} redirects away", hint="give the final URL")

    def _read_robots(self, url: Url, limit: int) -> tuple[int, bytes]:
        """Status and first `limit` bytes; a broken body is as bad as none."""
        deadline = Deadline(min(self.limits.total_s, 10 * self.limits.idle_s))

        def once() -> tuple[int, bytes]:
            body = bytearray()
            with self.get(url, {}, deadline, robots=False) as answer:
                for block in answer.blocks():
                    body += block
                    if len(body) >= limit:
                        break
                return answer.status, bytes(body[:limit])

        return with_retries(once, self.limits, deadline)


def _redirected(url: Url, location: str | None) -> Url:
    if not location:
        raise InputError(f"{url} redirects to nowhere", hint="check the URL")
    with_bytes = location.encode("latin-1", errors="replace").decode("utf-8", errors="replace")
    target = url.join(with_bytes)
    if url.scheme == "https" and target.scheme == "http":
        raise InputError(f"{url} redirects from https to {target}", hint="give that URL yourself if you trust it")
    return target


def _check(url: Url, response: http.client.HTTPResponse, limits: Limits) -> None:
    if response.status in BUSY:
        raise LostError(f"{url} answers with status {response.status}", _retry_after(url, response, limits))
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "") and response.status < 300:
        raise InputError(
            f"{url} comes with Content-Encoding {encoding}, although none was asked for",
            hint="download it yourself and give the file",
        )


def _retry_after(url: Url, response: http.client.HTTPResponse, limits: Limits) -> float | None:
    """Seconds that the server asks to wait, given as a number or a date (RFC 9110 10.2.3)."""
    text = response.headers.get("Retry-After", "").strip()
    if not text:
        return None
    if text.isascii() and text.isdigit():
        seconds = float(text[:12])
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    if seconds > limits.longest_wait_s:
        raise InputError(
            f"{url} answers with status {response.status} and asks to wait {seconds:.0f} s",
            hint="run the same command after that time; it goes on where it stopped",
        )
    return max(0.0, seconds)


def with_retries(
    step: Callable[[], T], limits: Limits, deadline: Deadline, progress: Callable[[], int] = lambda: 0
) -> T:
    """`step()`, repeated with growing pauses while it raises `LostError`.

    Args:
        step: one try; it goes on where the last one stopped.
        limits: how many tries in a row may bring nothing.
        deadline: when no new try begins.
        progress: bytes that are there; as long as they grow, the tries are counted anew.

    Raises:
        InputError: where no try succeeded.
    """
    import stamina
    import stamina.instrumentation

    stamina.instrumentation.set_on_retry_hooks([])  # it would log; this package tells by its own ways

    def wait(error: Exception) -> bool | float:
        if not isinstance(error, LostError):
            return False
        return True if error.retry_after is None else error.retry_after

    while True:
        before = progress()
        tries = stamina.retry_context(
            on=wait,
            attempts=limits.attempts,
            timeout=deadline.remaining(),
            wait_initial=0.2,
            wait_max=min(20.0, limits.longest_wait_s),
            wait_jitter=0.2,
        )
        try:
            for attempt in tries:
                with attempt:
                    return step()
        except LostError as error:
            deadline.remaining()
            if progress() <= before:
                raise InputError(str(error), hint="run the same command again: it goes on where it stopped") from error
