"""What a site's robots.txt lets `llmctl` fetch (RFC 9309)."""

from __future__ import annotations

import math
import re
import string
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

from llmctl.config.errors import InputError
from llmctl.data.collect.fetch.address import SAFE, Url

USER_AGENT = "llmctl"
MAX_ROBOTS_BYTES = 500 << 10  # RFC 9309 2.5: at least 500 KiB are read; what lies beyond is ignored
LONGEST_DELAY_S = 30.0

TOKEN = re.compile(r"[A-Za-z_-]+")
ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
UNRESERVED = frozenset(string.ascii_letters + string.digits + "-._~")

# Reads a URL's first bytes: (status, body).
Read = Callable[[Url, int], tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Rules:
    """What one robots.txt says to one agent.

    Attributes:
        lines: (path pattern, whether it allows).
        delay_s: the pause that it wants between two visits.
    """

    lines: tuple[tuple[str, bool], ...] = ()
    delay_s: float = 0.0

    def allow(self, target: str) -> bool:
        """Whether path and query may be fetched: the longest fitting pattern decides, and allows in a tie."""
        path = _normal(target)
        fitting = [(len(pattern), allows) for pattern, allows in self.lines if fits(pattern, path)]
        return max(fitting, default=(0, True))[1]


def fits(pattern: str, path: str) -> bool:
    """Whether a pattern fits a path's beginning; `*` stands for anything, a final `$` for the end. Linear time."""
    anchored = pattern.endswith("$")
    first, *rest = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    at = len(first)
    if not rest:
        return not anchored or at == len(path)
    *middle, last = rest
    for piece in middle:
        found = path.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return path.endswith(last) and len(path) - len(last) >= at if anchored else path.find(last, at) >= 0


def _normal(target: str) -> str:
    """One spelling for each path: bytes beyond ASCII escaped, letters and digits not (RFC 9309 2.2.2)."""

    def spelt(escape: re.Match[str]) -> str:
        character = chr(int(escape[1], 16))
        return character if character in UNRESERVED else escape[0].upper()

    return ESCAPE.sub(spelt, quote(target, safe=SAFE))


def parse_rules(text: str, agent: str) -> Rules:
    """The rules of every group for `agent`, or of those for `*` where there is none (RFC 9309 2.2.1)."""
    groups: dict[str, list[tuple[str, str]]] = {}
    named: list[str] = []
    in_rules = False
    for key, value in _fields(text):
        if key == "user-agent":
            if in_rules:
                named, in_rules = [], False
            token = TOKEN.match(value)
            named.append(token[0].lower() if token else value[:1])
            groups.setdefault(named[-1], [])
        elif key in ("allow", "disallow", "crawl-delay"):
            in_rules = True
            for name in named:
                groups[name].append((key, value))
    chosen = groups.get(agent, groups.get("*", []))
    lines = tuple((_normal(value), key == "allow") for key, value in chosen if key != "crawl-delay" and value)
    return Rules(lines, max((_seconds(value) for key, value in chosen if key == "crawl-delay"), default=0.0))


def _fields(text: str) -> Iterator[tuple[str, str]]:
    for line in text.removeprefix("\ufeff").splitlines():
        key, colon, value = line.partition("#")[0].partition(":")
        if colon:
            yield key.strip().lower(), value.strip()


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), LONGEST_DELAY_S) if math.isfinite(seconds) else 0.0


@dataclass
class _Site:
    rules: Rules
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
        if not site.rules.allow(url.target):
            raise InputError(
                f"{url} is not fetched: {url.origin}/robots.txt forbids it",
                hint="ask the site, or download it yourself and give the file",
            )
        if (wait := site.next_visit - time.monotonic()) > 0:
            time.sleep(wait)
        site.next_visit = time.monotonic() + site.rules.delay_s

    def _site(self, url: Url) -> _Site:
        place = Url(url.scheme, url.host, url.port, "/robots.txt")
        status, body = self._read(place, MAX_ROBOTS_BYTES)
        if status == 200:
            return _Site(parse_rules(body.decode("utf-8", errors="replace"), USER_AGENT))
        if 400 <= status < 500:  # RFC 9309 2.3.1.3: no rules
            return _Site(Rules())
        raise InputError(
            f"{url} is not fetched: {place} answers with status {status}, which forbids everything",
            hint="try again later, or download it yourself and give the file",
        )
