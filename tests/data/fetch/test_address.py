import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.config.errors import InputError
from llmctl.data.collect.fetch.address import Url, is_public, parse_url


def test_a_url_has_one_reading() -> None:
    url = parse_url("HTTPS://Example.ORG:8443/a%20b/c?x=1&y=[2]#sha256=ab")
    assert url == Url("https", "example.org", 8443, "/a%20b/c?x=1&y=[2]", "sha256=ab")
    assert str(url) == "https://example.org:8443/a%20b/c?x=1&y=[2]"
    assert str(parse_url("http://example.org")) == "http://example.org/"
    assert str(parse_url("http://example.org:80?q")) == "http://example.org/?q"
    assert parse_url("http://[2606:4700::0001]:81/").origin == "http://[2606:4700::1]:81"
    assert parse_url("https://de.wikipedia.org/wiki/Käse").target == "/wiki/K%C3%A4se"


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/x?y#z", "https://a.org/x?y"),
        ("next.html", "https://a.org/dir/next.html"),
        ("../up", "https://a.org/up"),
        ("?page=2", "https://a.org/dir/page?page=2"),
        ("//b.org/x", "https://b.org/x"),
        ("http://b.org:81/x", "http://b.org:81/x"),
    ],
)
def test_a_redirect_is_read_relative_to_its_page(location: str, target: str) -> None:
    assert str(parse_url("https://a.org/dir/page?q").join(location)) == target


@pytest.mark.parametrize(
    "location", ["\\\\b.org/x", "/\\b.org", "javascript:1", "file:///etc/passwd", "http:b.org", ""]
)
def test_a_redirect_that_could_be_read_otherwise_is_refused(location: str) -> None:
    if location == "":
        assert parse_url("https://a.org/d").join("").origin == "https://a.org"
        return
    with pytest.raises(InputError):
        parse_url("https://a.org/d").join(location)


@given(st.text(max_size=60), st.sampled_from(["{}", "http://{}", "https://{}/x", "http://a.org{}", "http://a.org/{}"]))
def test_what_is_parsed_is_parsed_the_same_again(text: str, form: str) -> None:
    try:
        url = parse_url(form.format(text))
    except InputError:
        return
    assert parse_url(str(url)) == Url(url.scheme, url.host, url.port, url.target)
    assert str(url).isascii()
    assert not set(str(url)) & set("\\ \t\r\n\0")


@given(st.ip_addresses())
def test_no_address_is_public_that_the_library_calls_private(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    nat64 = ip.version == 6 and int(ip) >> 32 == int(ipaddress.IPv6Address("64:ff9b::")) >> 32
    if is_public(str(ip)) and not nat64:
        assert ip.is_global
        assert not any((ip.is_private, ip.is_multicast, ip.is_loopback, ip.is_link_local, ip.is_unspecified))


@given(st.ip_addresses(v=4))
def test_an_address_inside_another_is_no_more_public_than_by_itself(ip: ipaddress.IPv4Address) -> None:
    number = int(ip)
    assert not is_public(f"::ffff:{ip}")
    assert not is_public(str(ipaddress.IPv6Address(number)))
    assert not is_public(str(ipaddress.IPv6Address((0x2002 << 112) | number << 80)))
    inside = str(ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) | number))
    assert is_public(inside) == is_public(str(ip))


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)
