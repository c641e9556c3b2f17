import fnmatch
import re
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.config.errors import InputError
from llmctl.data.collect.fetch import Limits
from llmctl.data.collect.fetch.robots import LONGEST_DELAY_S, Rules, fits, parse_rules
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


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [  # the table of RFC 9309 2.2.3 and of its section 5
        ("/", "/anything", True),
        ("/fish", "/fish.html", True),
        ("/fish", "/Fish.asp", False),
        ("/fish*", "/fishheads/yummy.html", True),
        ("/fish/", "/fish", False),
        ("/*.php", "/folder/any.php.file.html", True),
        ("/*.php$", "/filename.php?parameters", False),
        ("/*.php$", "/folder/filename.php", True),
        ("/fish*.php", "/fishheads/catfish.php?id=1", True),
        ("/a*bc$", "/abc", True),
        ("/ab*bc$", "/abc", False),
        ("/$", "/", True),
        ("/$", "/a", False),
    ],
)
def test_patterns(pattern: str, path: str, expected: bool) -> None:
    assert fits(pattern, path) is expected


@given(st.text("ab*", max_size=8), st.text("ab", max_size=10), st.booleans())
def test_patterns_mean_what_shell_patterns_mean(pattern: str, path: str, anchored: bool) -> None:
    expected = re.match(fnmatch.translate(pattern if anchored else pattern + "*"), path) is not None
    assert fits(pattern + "$" * anchored, path) is expected


def test_the_longest_rule_decides_and_groups_are_merged() -> None:
    text = """
    User-agent: other
    Disallow: /
    User-agent: LLMctl/2.0   # that is us
    User-agent: third
    Allow: /
    Disallow: /private
    Allow: /private/open
    Crawl-delay: 2
    User-agent: *
    Disallow: /star
    user-agent: llmctl
    disallow: /k%c3%A4se
    disallow: /same
    allow: /same
    disallow:
    crawl-delay: inf
    """
    rules = parse_rules(text, "llmctl")
    allowed = {path: rules.allow(path) for path in ("/", "/private/x", "/private/open/x", "/star", "/same")}
    assert allowed == {"/": True, "/private/x": False, "/private/open/x": True, "/star": True, "/same": True}
    assert not rules.allow("/%6B%C3%A4se")
    assert not rules.allow("/käse/1")
    assert rules.delay_s == 2
    assert parse_rules(text, "fourth").allow("/star/x") is False
    assert parse_rules("User-agent: *\nCrawl-delay: 1e9", "llmctl").delay_s == LONGEST_DELAY_S


@given(st.text(max_size=300), st.text(max_size=30))
def test_any_text_is_some_rules(text: str, path: str) -> None:
    for body in (text, f"User-agent: *\nDisallow:{text}"):
        rules = parse_rules(body, "llmctl")
        assert rules.delay_s >= 0
        assert rules.allow("/" + path.encode("ascii", "ignore").decode()) in (True, False)
    assert Rules().allow(path.encode("ascii", "ignore").decode())
