"""Documents dropped or let through by their URL: lists of domains, hosts, addresses and substrings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from llmctl.data.clean.kernel import with_reasons
from llmctl.data.lines import readable

LONGEST_HOST = 253  # characters (RFC 1035, section 2.3.4)
SCHEMES = ("https://", "http://", "//")


@dataclass
class UrlList:
    """A list of URLs, one entry a line; `#` starts a comment. Values are line numbers.

        example.com            the domain and every domain below it
        =www.example.com       that host alone
        example.com/forum/     every address that starts so, on that host (with or without www.)
        *casino*               every URL with that in it

    Letter case does not count. These are the forms of the lists that others publish (UT1, StevenBlack, RefinedWeb).
    """

    domains: dict[str, int] = field(default_factory=dict)
    hosts: dict[str, int] = field(default_factory=dict)
    starts: dict[str, list[tuple[str, int]]] = field(default_factory=dict)  # by host
    substrings: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> UrlList:
        """The list in a UTF-8 text file."""
        made = cls()
        for number, entry in entries(path):
            made.add(entry.lower(), number)
        return made

    def add(self, entry: str, number: int) -> None:
        """One entry in lower case."""
        if len(entry) > 2 and entry[0] == entry[-1] == "*":
            self.substrings.setdefault(entry[1:-1], number)
        elif entry.startswith("="):
            self.hosts.setdefault(entry[1:], number)
        elif "/" in (bare := without_scheme(entry)):
            host, path = split_address(bare)
            self.starts.setdefault(host, []).append((path, number))
        else:
            self.domains.setdefault(bare.removeprefix("www."), number)

    def match(self, url: str) -> int | None:
        """The line of an entry that fits the URL; None where none does."""
        url = url.lower()
        host, path = split_address(without_scheme(url))
        for known in (self.hosts.get(host_of(url)), *(self.domains.get(domain) for domain in parents(host))):
            if known is not None:
                return known
        for start, number in self.starts.get(host, ()):
            if path.startswith(start):
                return number
        return next((number for part, number in self.substrings.items() if part in url), None)


def entries(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, entry) of a text file with one entry a line; blank lines and `#` comments left out."""
    with readable(path), open(path, encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            entry = line.strip()
            if entry and not entry.startswith("#"):
                yield number, entry


def without_scheme(url: str) -> str:
    """`url` from its host on."""
    return next((url.removeprefix(scheme) for scheme in SCHEMES if url.startswith(scheme)), url)


def host_of(url: str) -> str:
    """The host of a URL in lower case, without user, port and final dot; "" where there is none."""
    address = without_scheme(url.lower())
    if address == url.lower():  # a path, or another scheme
        return ""
    authority = address.replace("\\", "/").partition("/")[0].partition("?")[0].partition("#")[0]
    host = authority.rpartition("@")[2]
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0].rstrip(".")


def split_address(address: str) -> tuple[str, str]:
    """(host without www., path) of an address without scheme."""
    host = host_of("//" + address)
    return host.removeprefix("www."), "/" + address.partition("/")[2]


def parents(host: str) -> Iterator[str]:
    """`a.b.c`, `b.c`, `c`; of a host longer than any name in the DNS, those within a name's length."""
    if len(host) > LONGEST_HOST:
        host = host[-LONGEST_HOST - 1 :].partition(".")[2]
    while host:
        yield host
        host = host.partition(".")[2]


class UrlRules:
    """Drops documents whose URL the block list names and the allow list does not; the value is the entry's line.

    Args:
        block: URLs to drop.
        allow: URLs that stay whatever the block list says.
        only_allowed: drop also whatever the allow list does not name, and documents without a URL.
    """

    def __init__(self, block: UrlList | None, allow: UrlList | None, *, only_allowed: bool = False) -> None:
        self.block = block
        self.allow = allow
        self.only_allowed = only_allowed

    def judge(self, url: str) -> float | None:
        """The line that drops the URL (0: no line of the allow list names it); None keeps it."""
        if self.allow is not None and url and self.allow.match(url) is not None:
            return None
        if self.only_allowed:
            return 0.0
        return self.block.match(url) if self.block is not None and url else None

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`batch` with `reason` and `value` brought up to date."""
        lines = [self.judge(url) for url in batch.column("url").to_pylist()]
        return with_reasons(batch, [None if line is None else "url" for line in lines], lines)
