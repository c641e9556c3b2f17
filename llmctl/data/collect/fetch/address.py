"""Which URLs and which network addresses may be fetched: the one URL parser, and the one rule for addresses.

Parsing is strict rather than kind. A URL that two programs could read differently (backslash, user name, octal or
short host, control character) is refused, since such URLs lead a check to one host and the connection to another.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, urljoin

from llmctl.config.errors import InputError

PORTS = {"http": 80, "https": 443}
URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<target>[^#]*)(?:#(?P<fragment>.*))?", re.DOTALL
)
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a host whose last label is one is an address for some resolvers
FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]|[\x80-\x9f\u2028\u2029\ud800-\udfff]")
SAFE = "".join(chr(code) for code in range(0x21, 0x7F))  # sent as written; only other characters are escaped
LONGEST_URL = 8192

# IANA special-purpose registries (RFC 6890 and later), beside what `is_global` says, which varies by Python release.
NOT_PUBLIC_V4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
    )
)  # fmt: skip
GLOBAL_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")
NOT_PUBLIC_V6 = tuple(  # within 2000::/3: protocol assignments and Teredo, documentation, 6to4
    ipaddress.IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address in its last 32 bits


@dataclass(frozen=True, slots=True)
class Url:
    """A parsed http or https URL.

    Attributes:
        scheme: `http` or `https`.
        host: lower case; an IPv6 address without its brackets.
        port: 1 to 65535.
        target: path and query as they are sent, starting with `/`.
        fragment: what follows `#`; never sent.
    """

    scheme: str
    host: str
    port: int
    target: str
    fragment: str = ""

    @property
    def origin(self) -> str:
        """`scheme://host[:port]`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == PORTS[self.scheme] else f":{self.port}")

    def __str__(self) -> str:
        return self.origin + self.target

    def join(self, location: str) -> Url:
        """The URL that a `Location` header means here.

        Raises:
            InputError: where it is refused as any other URL would be.
        """
        if FORBIDDEN.search(location):
            raise _refused(location, "the redirect holds a backslash, blank or control character")
        if location.startswith("//"):
            return parse_url(f"{self.scheme}:{location}")
        if SCHEME.match(location):
            return parse_url(location)
        path = self.target.partition("?")[0]
        return parse_url(self.origin + urljoin(path, location))  # paths only: the host is this one's


def _refused(text: str, why: str) -> InputError:
    shown = re.sub(r"//[^/]*@", "//…@", text)[:200]  # a password is not repeated
    return InputError(f"{shown!r} is not fetched: {why}", hint="give the canonical URL: https://host/path")


def parse_url(text: str) -> Url:
    """Read an http or https URL; characters beyond ASCII in path and query are escaped as UTF-8.

    Raises:
        InputError: for another scheme, and for everything that is not the one canonical way to write a URL.
    """
    if len(text) > LONGEST_URL:
        raise _refused(text, f"it is longer than {LONGEST_URL} characters")
    if FORBIDDEN.search(text):
        raise _refused(text, "it holds a backslash, blank or control character")
    parts = URL.fullmatch(text)
    if parts is None or (scheme := parts["scheme"].lower()) not in PORTS:
        raise _refused(text, "only http:// and https:// are")
    if "@" in parts["authority"]:
        raise _refused(text, "it holds a user name or password")
    authority = AUTHORITY.fullmatch(parts["authority"])
    if authority is None:
        raise _refused(text, "its host is not written in plain letters (an international name has an xn-- form)")
    host = _canonical_host(authority["host"].lower(), text)
    port = int(authority["port"] or PORTS[scheme])
    if not 1 <= port <= 65535:
        raise _refused(text, f"there is no port {port}")
    target = quote(parts["target"], safe=SAFE)
    return Url(scheme, host, port, target if target.startswith("/") else f"/{target}", parts["fragment"] or "")


def _canonical_host(host: str, text: str) -> str:
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise _refused(text, "its host is not an IPv6 address") from None
    labels = host.split(".")
    if NUMBER.fullmatch(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(host))  # four decimal numbers without leading zeros, nothing else
        except ValueError:
            raise _refused(text, "its host is an address that is not written as four decimal numbers") from None
    if len(host) > 253 or not all(LABEL.fullmatch(label) for label in labels):
        raise _refused(text, "its host is not a name")
    return host


def is_public(address: str) -> bool:
    """Whether an IPv4 or IPv6 address is one of the public internet's, tunnels to private ones included."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not any(ip in network for network in NOT_PUBLIC_V4)
    if ip in NAT64:
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return (
        ip.is_global
        and ip in GLOBAL_UNICAST_V6  # leaves out mapped and compatible IPv4, unique local, link and site local
        and not any(ip in network for network in NOT_PUBLIC_V6)
    )
