"""What a site's robots.txt lets `llmctl` fetch (RFC 9309)."""

from __future__ import annotations

import time
import urllib.robotparser
from collections.abc import Callable
from dataclasses import dataclass

from llmctl.config.errors import InputError
from llmctl.data.collect.fetch.address import Url

USER_AGENT = "llmctl"
MAX_ROBOTS_BYTES = 500 << 10  # RFC 9309 2.5: at least 500 KiB are read; what lies beyond is ignored
LONGEST_DELAY_S = 30.0

# Reads a URL's first bytes: (status, body).
Read = Callable[[Url, int], tuple[int, bytes]]


@dataclass
class _Site:
    rules: urllib.robotparser.RobotFileParser
    delay_s: float
    next_visit: float = 0.0


class Robots:
    """The rules of every site visited so far, each read once."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._sites: dict[str, _Site] = {}

    def visit(self, url: Url) -> None:
        """Wait for the site's crawl delay since the last visit.

        Raises:
            InputError: where the site does not want this URL fetched, or its rules cannot be read (a site whose
                robots.txt answers with a server error is taken to forbid everything: RFC 9309 2.3.1.4).
        """
        if url.origin not in self._sites:
            self._sites[url.origin] = self._site(url)
        site = self._sites[url.origin]
        if not site.rules.can_fetch(USER_AGENT, str(url)):
            raise InputError(
                f"{url} is not fetched: {url.origin}/robots.txt forbids it",
                hint="ask the site, or download it yourself and give the file",
            )
        if (wait := site.next_visit - time.monotonic()) > 0:
            time.sleep(wait)
        site.next_visit = time.monotonic() + site.delay_s

    def _site(self, url: Url) -> _Site:
        place = Url(url.scheme, url.host, url.port, "/robots.txt")
        status, body = self._read(place, MAX_ROBOTS_BYTES)
        rules = urllib.robotparser.RobotFileParser()
        if status == 200:
            rules.parse(body.decode("utf-8", errors="replace").removeprefix("\ufeff").splitlines())
        elif 400 <= status < 500:  # RFC 9309 2.3.1.3: no rules
            rules.parse([])
        else:
            raise InputError(
                f"{url} is not fetched: {place} answers with status {status}, which forbids everything",
                hint="try again later, or download it yourself and give the file",
            )
        asked = rules.crawl_delay(USER_AGENT)
        return _Site(rules, min(float(asked or 0), LONGEST_DELAY_S))
