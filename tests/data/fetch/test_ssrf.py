"""No way leads to this machine or its networks unless the user allows it: design §8, facts §5 C.3 row 11."""

from collections.abc import Callable

import pytest

from llmctl.config.errors import InputError
from llmctl.data.collect.fetch import Limits, Network
from tests.data.fetch.servers import PUBLIC, Canary, Site, Wires, redirect, status

ONCE = Limits(idle_s=2, total_s=10, attempts=1)

# PORT is the canary's. Names that end in .test are looked up in NAMES.
ADDRESSES = [
    "http://127.0.0.1:PORT/",
    "http://127.255.255.254:PORT/",
    "http://0.0.0.0:PORT/",
    "http://10.0.0.1:PORT/",
    "http://172.16.0.1:PORT/",
    "http://172.31.255.255:PORT/",
    "http://192.168.1.1:PORT/",
    "http://169.254.169.254:PORT/latest/meta-data/",
    "http://100.64.0.1:PORT/",
    "http://192.0.0.170:PORT/",
    "http://198.18.0.1:PORT/",
    "http://192.0.2.1:PORT/",
    "http://224.0.0.1:PORT/",
    "http://255.255.255.255:PORT/",
    "http://[::1]:PORT/",
    "http://[::]:PORT/",
    "http://[::ffff:127.0.0.1]:PORT/",
    "http://[::ffff:7f00:1]:PORT/",
    "http://[0:0:0:0:0:ffff:10.0.0.1]:PORT/",
    "http://[::127.0.0.1]:PORT/",
    "http://[64:ff9b::7f00:1]:PORT/",
    "http://[64:ff9b:1::7f00:1]:PORT/",
    "http://[2002:7f00:1::]:PORT/",
    "http://[2001:0:7f00:1::]:PORT/",
    "http://[fe80::1]:PORT/",
    "http://[fc00::1]:PORT/",
    "http://[fec0::1]:PORT/",
    "http://[ff02::1]:PORT/",
    "https://127.0.0.1:PORT/",
    "https://[::1]:PORT/",
]
SPELLINGS = [
    "http://2130706433:PORT/",
    "http://017700000001:PORT/",
    "http://0177.0.0.1:PORT/",
    "http://0x7f000001:PORT/",
    "http://0x7f.0.0.1:PORT/",
    "http://0x7f.1:PORT/",
    "http://127.1:PORT/",
    "http://127.0.1:PORT/",
    "http://127.0.0.1.:PORT/",
    "http://localhost.:PORT/",
    "http://[::1%25lo]:PORT/",
    "http://[fe80::1%25eth0]:PORT/",
    "http://\uff11\uff12\uff17.\uff10.\uff10.\uff11:PORT/",  # full-width digits
    "http://127。0。0。1:PORT/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:PORT/",
    "http://user@127.0.0.1:PORT/",
    "http://public.test@127.0.0.1:PORT/",
    "http://127.0.0.1:PORT@public.test/",
    "http://public.test:80@127.0.0.1:PORT/",
    "http://public.test\\@127.0.0.1:PORT/",
    "http://127.0.0.1:PORT\\@public.test/",
    "http:\\\\127.0.0.1:PORT/",
    "http://\\127.0.0.1:PORT/",
    "http://127.0.0.1:PORT\t/",
    "http://127.0.0.1\n:PORT/",
    "http://127.0.0.1:PORT\r\nHost: public.test/",
    "http://public.test\x00.127.0.0.1:PORT/",
    "http://%31%32%37.0.0.1:PORT/",
    "http:///127.0.0.1:PORT/",
    "http://:PORT/",
    "gopher://127.0.0.1:PORT/_x",
    "ftp://127.0.0.1:PORT/x",
    "file://127.0.0.1:PORT/etc/passwd",
    "file:///etc/passwd",
    "dict://127.0.0.1:PORT/d",
    "jar:http://127.0.0.1:PORT/!/x",
]
NAMES = {
    "public.test": [PUBLIC],
    "loopback.test": ["127.0.0.1"],
    "six.test": ["::1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "metadata.test": ["169.254.169.254"],
    "scoped.test": ["fe80::1%lo"],
    "both.test": [PUBLIC, "127.0.0.1"],  # one bad address is enough
    "localhost": ["127.0.0.1", "::1"],
}
LOOKED_UP = [f"http://{name}:PORT/" for name in NAMES if name != "public.test"]


def resolve(host: str, port: int) -> list[str]:
    return NAMES[host]


def test_the_table_has_its_sixty_addresses() -> None:
    assert len({*ADDRESSES, *SPELLINGS, *LOOKED_UP}) >= 60


@pytest.mark.parametrize("url", [*ADDRESSES, *SPELLINGS, *LOOKED_UP])
def test_a_refused_url_connects_to_nothing(url: str, canary: Canary, fetch: Callable) -> None:
    wires = Wires()
    with pytest.raises(InputError):
        fetch(url.replace("PORT", str(canary.port)), ONCE, Network(resolve=resolve, connect=wires))
    assert wires.asked == []
    assert canary.connections == []


@pytest.mark.parametrize("url", [*ADDRESSES, *SPELLINGS, *LOOKED_UP])
def test_a_redirect_there_is_not_followed(url: str, canary: Canary, site: Site, fetch: Callable) -> None:
    target = url.replace("PORT", str(canary.port)).partition("\r")[0].replace("\n", "")  # what a header line can hold
    site.pages["/go"] = redirect(target.encode().decode("latin-1"))
    wires = Wires(site.port)
    with pytest.raises(InputError):
        fetch("http://public.test/go", ONCE, Network(resolve=resolve, connect=wires))
    assert site.paths() == ["/go"]
    assert set(wires.asked) == {PUBLIC}
    assert canary.connections == []


def test_a_redirect_of_robots_txt_is_not_followed_there(canary: Canary, site: Site, fetch: Callable) -> None:
    site.pages["/robots.txt"] = redirect(f"http://127.0.0.1:{canary.port}/robots.txt")
    site.pages["/a.txt"] = status(200, b"text")
    with pytest.raises(InputError, match="not a public address"):
        fetch("http://public.test/a.txt", ONCE, Network(resolve=resolve, connect=Wires(site.port)))
    assert site.paths() == []
    assert canary.connections == []


@pytest.mark.parametrize("public_answers", [0, 1, 2, 3])
def test_a_name_that_changes_its_address_leads_nowhere(
    public_answers: int, canary: Canary, site: Site, fetch: Callable
) -> None:
    """Each request is looked up once: the address that was checked is the one connected to."""
    lookups: list[str] = []

    def turning(host: str, port: int) -> list[str]:
        lookups.append(host)
        return [PUBLIC] if len(lookups) <= public_answers else ["127.0.0.1"]

    site.pages["/a.txt"] = redirect("/b.txt")
    site.pages["/b.txt"] = status(200, b"text")
    wires = Wires(site.port)
    url = f"http://turning.test:{canary.port}/a.txt"
    if public_answers == 3:  # robots.txt, a.txt and b.txt: a fourth look-up is never made
        assert fetch(url, ONCE, Network(resolve=turning, connect=wires)).files[0].path.read_bytes() == b"text"
    else:
        with pytest.raises(InputError, match=r"127\.0\.0\.1 is not a public address"):
            fetch(url, ONCE, Network(resolve=turning, connect=wires))
    assert wires.asked == [PUBLIC] * public_answers
    assert len(lookups) == min(public_answers + 1, 3)
    assert canary.connections == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:PORT/", "http://loopback.test:PORT/", "http://[::1]:PORT/"])
def test_with_permission_it_connects(url: str, canary: Canary, fetch: Callable) -> None:
    if "::1" in url and not canary.has_v6:
        pytest.skip("no IPv6 here")
    with pytest.raises(InputError, match="broke"):  # the canary hangs up
        fetch(url.replace("PORT", str(canary.port)), ONCE, Network(True, resolve))
    assert len(canary.connections) == 1


@pytest.mark.parametrize("scheme", ["s3", "gs", "hf"])
def test_an_endpoint_on_this_machine_needs_permission(
    scheme: str, canary: Canary, fetch: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST", "HF_ENDPOINT"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{canary.port}")
    with pytest.raises(InputError, match="not a public address"):
        fetch(f"{scheme}://bucket/key", ONCE, Network())
    assert canary.connections == []
