import time
from collections.abc import Callable

import pytest

from llmctl.config.errors import InputError
from llmctl.data.collect.fetch import Limits
from tests.data.fetch.servers import Handler, Site, redirect, reply, status

RULES = b"""User-agent: llmctl
Disallow: /private/
Allow: /

User-agent: *
Disallow: /
"""


def asked(site: Site) -> list[str]:
    return [request.path for request in site.requests]


def test_a_forbidden_page_is_not_asked_for(site: Site, fetch: Callable) -> None:
    site.pages |= {"/robots.txt": status(200, RULES), "/a.txt": status(200, b"a"), "/private/b.txt": status(200, b"b")}
    assert fetch(f"{site.url}/a.txt").files[0].path.read_bytes() == b"a"
    with pytest.raises(InputError, match=r"robots\.txt forbids it"):
        fetch(f"{site.url}/private/b.txt")
    assert asked(site) == ["/robots.txt", "/a.txt", "/robots.txt"]


def test_a_redirect_to_a_forbidden_page_is_not_followed(site: Site, fetch: Callable) -> None:
    site.pages |= {"/robots.txt": status(200, RULES), "/go": redirect("/private/b.txt")}
    with pytest.raises(InputError, match=r"robots\.txt forbids it"):
        fetch(f"{site.url}/go")
    assert asked(site) == ["/robots.txt", "/go"]  # and the rules were read once


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_no_rules_forbid_nothing(code: int, site: Site, fetch: Callable) -> None:
    site.pages |= {"/robots.txt": status(code, RULES), "/private/b.txt": status(200, b"b")}
    assert fetch(f"{site.url}/private/b.txt").files[0].path.read_bytes() == b"b"


def test_rules_that_cannot_be_read_forbid_everything(site: Site, fetch: Callable) -> None:
    site.pages |= {"/robots.txt": status(500), "/a.txt": status(200, b"a")}
    with pytest.raises(InputError, match="status 500"):
        fetch(f"{site.url}/a.txt", Limits(attempts=2))
    assert asked(site) == ["/robots.txt"] * 2


def test_rules_are_read_up_to_a_bound(site: Site, fetch: Callable) -> None:
    def flood(handler: Handler) -> None:
        reply(handler, 200, b"# padding\n" * 60_000 + b"User-agent: *\nDisallow: /\n")

    site.pages |= {"/robots.txt": flood, "/a.txt": status(200, b"a")}
    assert fetch(f"{site.url}/a.txt").files[0].path.read_bytes() == b"a"


def test_bytes_that_are_no_text_do_no_harm(site: Site, fetch: Callable) -> None:
    site.pages |= {
        "/robots.txt": status(200, b"\xef\xbb\xbfUser-agent: *\n\xff\xfe\x00: \nDisallow: /private\n"),
        "/a.txt": status(200, b"a"),
        "/private": status(200, b"b"),
    }
    assert fetch(f"{site.url}/a.txt").files[0].path.read_bytes() == b"a"
    with pytest.raises(InputError, match="forbids"):
        fetch(f"{site.url}/private")


def test_a_crawl_delay_is_kept(site: Site, fetch: Callable) -> None:
    site.pages |= {
        "/robots.txt": status(200, b"User-agent: *\nCrawl-delay: 1\n"),
        "/go": redirect("/a.txt"),
        "/a.txt": status(200, b"a"),
    }
    begun = time.monotonic()
    fetch(f"{site.url}/go")
    assert time.monotonic() - begun >= 1
