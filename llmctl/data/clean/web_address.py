"""Whether a word is a web or mail address, which stays whole. The facts are spaCy 3.8's: the shape of its URLs."""

from __future__ import annotations

import re

from llmctl.data.clean.characters import LOWER, Kinds

LABEL = "A-Za-z0-9\u00a1-\uffff"
SCHEME = re.compile(r"[\w+.-]{2,}://")
PORT = re.compile(r":\d{2,5}(?=[/?#]|\Z)")
HOST_END = re.compile(r"[:/?#]|\Z")
HOST_LABEL = re.compile(rf"[{LABEL}](?:[{LABEL}_-]{{0,62}}[{LABEL}])?")
OCTETS = 4
LONGEST_DOMAIN = 63
KINDS = Kinds()


def is_address(word: str) -> bool:
    """Whether `word` reads `[scheme://][user[:password]@]host.domain[:port][/path]`, with a public IP or a name.

    A private or loopback IP is no address here. The time grows with the length of the word alone: the host
    is looked for behind the scheme and behind each `@`, and hosts hold no `@`.
    """
    if "." not in word:
        return False
    if _host_at(word, 0):
        return True
    scheme = SCHEME.match(word)
    if scheme and _host_at(word, scheme.end()):
        return True
    at = word.find("@", 1)
    while at >= 0:
        if _host_at(word, at + 1):
            return True
        at = word.find("@", at + 1)
    return False


def _host_at(word: str, start: int) -> bool:
    """Whether a host stands at `start`, with nothing behind it but a port and a path."""
    next_at = word.find("@", start)
    found = HOST_END.search(word, start, len(word) if next_at < 0 else next_at)
    if found is None:
        return False
    end = found.start()
    if end < len(word) and word[end] == ":" and not PORT.match(word, end):
        return False
    if end < len(word) and word[end] == "@":
        return False
    host = word[start:end]
    return _is_name(host) or _is_public_ip(host)


def _is_name(host: str) -> bool:
    """Labels of 1 to 64 characters and, last, a top-level domain of 2 to 63 lower-case letters."""
    *labels, domain = host.split(".")
    if not labels or not 2 <= len(domain) <= LONGEST_DOMAIN:
        return False
    return all(KINDS[letter] & LOWER for letter in domain) and all(map(HOST_LABEL.fullmatch, labels))


def _is_public_ip(host: str) -> bool:
    octets = host.split(".")
    if len(octets) != OCTETS or not all(o.isascii() and o.isdigit() and len(o) <= 3 for o in octets):
        return False
    first, second, third, last = map(int, octets)
    private = first in {10, 127} or (first, second) in {(169, 254), (192, 168)} or (first == 172 and 16 <= second <= 31)
    in_range = 1 <= first <= 223 and max(second, third) <= 255 and 1 <= last <= 254
    return in_range and not private and not octets[0].startswith("0") and not octets[3].startswith("0")
