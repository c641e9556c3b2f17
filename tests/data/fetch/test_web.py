import base64
import contextlib
import email.utils
import hashlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmctl.config.errors import InputError, LockedError
from llmctl.data.collect.fetch import Limits, Network, fetch_all
from llmctl.data.collect.fetch.address import parse_url
from llmctl.data.collect.fetch.downloads import Slot
from llmctl.data.collect.fetch.web import file_name
from llmctl.pipeline.job import Silent
from tests.data.fetch.conftest import QUICK
from tests.data.fetch.servers import Handler, Page, Site, Stored, redirect, reply, status

CONTENT = bytes(range(256)) * 8192  # 2 MiB
DATE = "Wed, 01 Oct 2025 10:00:00 GMT"


def in_turn(*pages: Page) -> Page:
    """Each request gets the next page."""
    waiting = list(pages)

    def page(handler: Handler) -> None:
        waiting.pop(0)(handler)

    return page


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def folder_of(url: str, tmp_path: Path) -> Path:
    return Slot(tmp_path / "downloads", url).folder


def test_a_download_is_a_verified_file_with_a_record(site: Site, fetch: Callable, tmp_path: Path) -> None:
    site.pages["/d/crawl.jsonl.gz"] = Stored(CONTENT, modified=DATE)
    url = f"{site.url}/d/crawl.jsonl.gz"
    haul = fetch(url)
    (file,) = haul.files
    assert (haul.name, haul.skipped) == ("crawl.jsonl.gz", 0)
    assert (file.name, file.url, file.sha256, file.time) == (
        "crawl.jsonl.gz", url, sha256(CONTENT), "2025-10-01T10:00:00+00:00",
    )  # fmt: skip
    assert file.path.read_bytes() == CONTENT
    assert file.path.name == "crawl.jsonl.gz"
    record = json.loads((folder_of(url, tmp_path) / "fetched.json").read_text())
    fetched = record.pop("fetched")
    assert email.utils.parsedate_to_datetime(DATE).isoformat() == file.time
    assert fetched.startswith("20")
    assert record == {
        "url": url, "name": "crawl.jsonl.gz", "bytes": len(CONTENT), "sha256": sha256(CONTENT), "etag": '"one"',
        "last_modified": DATE, "time": "2025-10-01T10:00:00+00:00",
    }  # fmt: skip
    assert not list(folder_of(url, tmp_path).glob("partial*"))
    asked = site.requests[-1].headers
    assert asked["User-Agent"].startswith("llmctl/")
    assert asked["Accept-Encoding"] == "identity"
    assert asked["Host"] == f"127.0.0.1:{site.port}"


def test_an_unchanged_file_is_used_again_and_a_changed_one_is_not(site: Site, fetch: Callable) -> None:
    page = site.pages["/a.txt"] = Stored(b"first")
    url = f"{site.url}/a.txt"
    first = fetch(url).files[0]
    assert fetch(url).files[0] == first
    assert page.sent == [200, 304]
    page.content, page.etag = b"second", '"two"'
    second = fetch(url).files[0]
    assert page.sent == [200, 304, 200]
    assert second.path.read_bytes() == b"second"
    assert first.path.read_bytes() == b"first"  # a run that reads it goes on


def test_last_modified_serves_where_there_is_no_etag(site: Site, fetch: Callable) -> None:
    page = site.pages["/a.txt"] = Stored(b"first", etag="", modified=DATE)
    assert fetch(f"{site.url}/a.txt") == fetch(f"{site.url}/a.txt")
    assert page.sent == [200, 304]


def test_the_same_bytes_under_a_new_date_stay_the_same_file(site: Site, fetch: Callable) -> None:
    page = site.pages["/a.txt"] = Stored(b"same", modified=DATE)
    first = fetch(f"{site.url}/a.txt")
    page.etag, page.modified = '"two"', "Thu, 02 Oct 2025 10:00:00 GMT"
    assert fetch(f"{site.url}/a.txt") == first
    assert page.sent == [200, 200]
    assert fetch(f"{site.url}/a.txt") == first
    assert page.sent == [200, 200, 304]


def test_a_damaged_download_is_fetched_again(site: Site, fetch: Callable) -> None:
    page = site.pages["/a.txt"] = Stored(b"right")
    path = fetch(f"{site.url}/a.txt").files[0].path
    path.chmod(0o644)
    path.write_bytes(b"wrong")
    assert fetch(f"{site.url}/a.txt").files[0].path.read_bytes() == b"right"
    assert page.sent == [200, 200]


@pytest.mark.parametrize("etag", ['"one"', 'W/"one"', ""])
@pytest.mark.parametrize("modified", [DATE, ""])
def test_a_broken_download_goes_on_where_it_stopped(etag: str, modified: str, site: Site, fetch: Callable) -> None:
    page = site.pages["/a.bin"] = Stored(CONTENT, etag=etag, modified=modified)
    page.cuts = [700_000, 800_000]
    assert fetch(f"{site.url}/a.bin").files[0].path.read_bytes() == CONTENT
    joinable = etag == '"one"' or bool(modified)
    assert page.sent == ([200, 206, 206] if joinable else [200, 200, 200])


def test_tries_are_counted_anew_as_long_as_bytes_come(site: Site, fetch: Callable) -> None:
    page = site.pages["/a.bin"] = Stored(CONTENT)
    page.cuts = [300_000] * 6  # more breaks than tries
    assert fetch(f"{site.url}/a.bin").files[0].path.read_bytes() == CONTENT
    assert page.sent == [200] + [206] * 6


def test_a_later_process_goes_on_too_unless_the_file_changed(site: Site, fetch: Callable) -> None:
    page = site.pages["/a.bin"] = Stored(CONTENT)
    url, once = f"{site.url}/a.bin", Limits(idle_s=5, total_s=60, attempts=1)
    page.cuts = [1_000_000, 0, 0]
    with pytest.raises(InputError, match="broke"):
        fetch(url, once)
    page.cuts = []
    assert fetch(url, once).files[0].path.read_bytes() == CONTENT
    assert page.sent == [200, 206, 206]
    assert int(site.requests[-1].headers["Range"].removeprefix("bytes=").rstrip("-")) == 1_000_000
    assert site.requests[-1].headers["If-Range"] == '"one"'

    page.content, page.etag, page.cuts, page.sent = CONTENT[::-1], '"two"', [1_000_000, 0], []
    with pytest.raises(InputError, match="broke"):
        fetch(url, once)
    page.content, page.etag, page.cuts = CONTENT[1:], '"three"', []
    assert fetch(url, once).files[0].path.read_bytes() == CONTENT[1:]
    assert page.sent == [200, 206, 200]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 90_000), max_size=4), changes=st.sets(st.integers(0, 4), max_size=2))
def test_however_it_breaks_the_bytes_are_the_last_version(
    cuts: list[int], changes: set[int], site: Site, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The server breaks off at random points and has a new version before some of the answers."""
    version = 0

    class Changing(Stored):
        def __call__(self, handler: Handler) -> None:
            nonlocal version
            if len(self.sent) in changes:
                version += 1
                self.content, self.etag = bytes([version]) * (80_000 + version), f'"{version}"'
            super().__call__(handler)

    page = site.pages["/a.bin"] = Changing(bytes(80_000), '"0"')
    page.cuts = list(cuts)
    url, directory = f"{site.url}/a.bin", tmp_path_factory.mktemp("downloads")
    haul = None
    while haul is None:  # each call is a command of its own; each uses up a cut at least
        with contextlib.suppress(InputError):
            once = Limits(attempts=1, idle_s=5)
            haul = fetch_all([url], directory, once, Network(allow_private=True), Silent())[url]
    assert haul.files[0].path.read_bytes() == page.content
    assert len(page.sent) <= len(cuts) + 1


def test_a_part_that_does_not_fit_is_not_joined(site: Site, fetch: Callable) -> None:
    answers = iter(["cut", "other start", "whole"])

    def page(handler: Handler) -> None:
        match next(answers):
            case "cut":
                reply(handler, 200, CONTENT[:1000], ETag='"one"', Content_Length=str(len(CONTENT)))
            case "other start":
                size = len(CONTENT)
                reply(handler, 206, CONTENT[5:], ETag='"one"', Content_Range=f"bytes 5-{size - 1}/{size}")
            case _:
                reply(handler, 200, CONTENT, ETag='"one"')

    site.pages["/a.bin"] = page
    assert fetch(f"{site.url}/a.bin").files[0].path.read_bytes() == CONTENT


def test_a_killed_download_goes_on_from_its_last_mark(site: Site, tmp_path: Path) -> None:
    """SIGKILL in the middle: the next process asks for the rest only, and the bytes are right."""
    content = os.urandom(1 << 20) * 40
    halted = [True]

    class Slow(Stored):
        def __call__(self, handler: Handler) -> None:
            if halted[0]:
                reply(handler, 200, content[: 36 << 20], ETag='"one"', Content_Length=str(len(content)))
                time.sleep(20)
            else:
                super().__call__(handler)

    page = site.pages["/a.bin"] = Slow(content)
    code = (
        "import sys; from pathlib import Path; from llmctl.data.collect.fetch import *; "
        "from llmctl.pipeline.job import Silent; "
        "fetch_all([sys.argv[1]], Path(sys.argv[2]), Limits(), Network(True), Silent())"
    )
    url, directory = f"{site.url}/a.bin", tmp_path / "downloads"
    process = subprocess.Popen([sys.executable, "-c", code, url, str(directory)])
    partial = folder_of(url, tmp_path) / "partial.tmp"
    until = time.monotonic() + 30
    while time.monotonic() < until and not (partial.exists() and partial.stat().st_size >= 35 << 20):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    halted[0] = False
    haul = fetch_all([url], directory, Limits(), Network(True), Silent())[url]
    assert haul.files[0].sha256 == sha256(content)
    assert page.sent == [206]
    assert int(site.requests[-1].headers["Range"].removeprefix("bytes=").rstrip("-")) >= 32 << 20


@pytest.mark.parametrize("kind", ["fragment", "content-md5", "x-goog-hash", "s3"])
def test_checksums_are_compared(kind: str, site: Site, fetch: Callable, tmp_path: Path) -> None:
    md5 = hashlib.md5(b"right", usedforsecurity=False)
    encoded = base64.b64encode(md5.digest()).decode()
    headers = {
        "fragment": {},
        "content-md5": {"Content_MD5": encoded},
        "x-goog-hash": {"x_goog_hash": f"crc32c=AAAAAA==,md5={encoded}"},
        "s3": {"x_amz_request_id": "1"},
    }[kind]
    page = site.pages["/a.txt"] = Stored(b"right", etag=f'"{md5.hexdigest()}"', **headers)
    url = f"{site.url}/a.txt" + (f"#sha256={sha256(b'right').upper()}" if kind == "fragment" else "")
    assert fetch(url).files[0].path.read_bytes() == b"right"
    folder = folder_of(f"{site.url}/a.txt", tmp_path)
    for path in (folder / "fetched.json", *folder.glob("*/a.txt")):
        path.unlink()
    page.content = b"wrong"
    with pytest.raises(InputError, match="damaged or another file"):
        fetch(url)
    assert not list(folder.rglob("*.txt"))
    assert not list(folder.glob("partial*"))


@pytest.mark.parametrize(
    "headers",
    [
        {},  # an ETag that looks like an MD5, but not from S3
        {"x_amz_request_id": "1", "x_amz_server_side_encryption": "aws:kms"},
        {"x_goog_stored_content_encoding": "gzip", "x_goog_hash": "md5=AAAAAAAAAAAAAAAAAAAAAA=="},
        {"Content_MD5": "not base64"},
    ],
)
def test_what_is_no_checksum_is_not_taken_for_one(headers: dict[str, str], site: Site, fetch: Callable) -> None:
    site.pages["/a.txt"] = Stored(b"right", etag='"' + "0" * 32 + '"', **headers)
    assert fetch(f"{site.url}/a.txt").files[0].path.read_bytes() == b"right"


def test_a_pinned_file_that_is_there_needs_no_server(site: Site, fetch: Callable) -> None:
    page = site.pages["/a.txt"] = Stored(b"right")
    url = f"{site.url}/a.txt#sha256={sha256(b'right')}"
    assert fetch(url) == fetch(url)
    assert page.sent == [200]
    with pytest.raises(InputError, match="no SHA-256"):
        fetch(f"{site.url}/a.txt#sha256=12")


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(code: int, site: Site, fetch: Callable) -> None:
    site.pages["/a.txt"] = in_turn(status(code, Retry_After="0"), status(code), status(200, b"text"))
    assert fetch(f"{site.url}/a.txt").files[0].path.read_bytes() == b"text"


def test_retry_after_is_waited_for_within_bounds(site: Site, fetch: Callable) -> None:
    site.pages["/a.txt"] = in_turn(status(429, Retry_After="1"), status(200, b"text"))
    begun = time.monotonic()
    fetch(f"{site.url}/a.txt")
    assert time.monotonic() - begun >= 1
    far = email.utils.formatdate(time.time() + 7200, usegmt=True)
    for text in ("7200", far):
        site.pages["/b.txt"] = status(503, Retry_After=text)
        site.requests.clear()
        with pytest.raises(InputError, match=r"asks to wait 7(200|19\d) s"):
            fetch(f"{site.url}/b.txt")
        assert site.paths() == ["/b.txt"]


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 501])
def test_other_answers_are_final(code: int, site: Site, fetch: Callable) -> None:
    site.pages["/a.txt"] = status(code)
    with pytest.raises(InputError, match=f"status {code}"):
        fetch(f"{site.url}/a.txt")
    assert site.paths() == ["/a.txt"]


def test_redirects_are_followed_up_to_five(site: Site, fetch: Callable) -> None:
    for number in range(6):
        site.pages[f"/{number}"] = redirect(f"/{number + 1}", 301 + number % 3)
    site.pages["/6"] = status(200, b"text", Content_Type="text/plain")
    assert fetch(f"{site.url}/1").files[0].path.read_bytes() == b"text"
    with pytest.raises(InputError, match="more than 5 redirects"):
        fetch(f"{site.url}/0")


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(1 << 16):
        handler.wfile.write(b"x" * 65536)


def endless_header(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for _ in range(1 << 12):
        handler.wfile.write(b"X-Pad: " + b"x" * 4000 + b"\r\n")


def endless_continue(handler: Handler) -> None:
    for _ in range(1 << 16):
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def trickle(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b"x")
        time.sleep(0.05)


def silence(handler: Handler) -> None:
    time.sleep(3)


@pytest.mark.parametrize(
    ("page", "limits", "message"),
    [
        (endless, Limits(max_bytes=1 << 20), "more than 1048576 bytes"),
        (status(200, b"x", Content_Length="2000000"), Limits(max_bytes=1 << 20), "more than 1048576 bytes"),
        (endless_header, Limits(attempts=1), "bytes of headers|headers"),
        (endless_continue, Limits(attempts=1), "bytes of headers"),
        (trickle, Limits(total_s=0.6), "longer than 0.6 s"),
        (silence, Limits(idle_s=0.3, attempts=1), "timed out"),
        (status(200, b"x", Content_Encoding="gzip"), Limits(), "Content-Encoding gzip"),
        (lambda handler: handler.wfile.write(b"SSH-2.0-x\r\n\r\n"), Limits(attempts=1), "broke"),
        (lambda handler: None, Limits(attempts=1), "broke"),
    ],
)
def test_bad_servers_are_given_up(page: Callable, limits: Limits, message: str, site: Site, fetch: Callable) -> None:
    site.pages["/a.txt"] = page
    with pytest.raises(InputError, match=message):
        fetch(f"{site.url}/a.txt", limits)


def test_a_chunked_body_and_one_without_length_are_read(site: Site, fetch: Callable) -> None:
    body = b"4\r\nWiki\r\n5\r\npedia\r\n0\r\n\r\n"
    site.pages["/c.txt"] = status(200, body, Transfer_Encoding="chunked")
    assert fetch(f"{site.url}/c.txt").files[0].path.read_bytes() == b"Wikipedia"

    def open_end(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nall there is")

    site.pages["/o.txt"] = open_end
    assert fetch(f"{site.url}/o.txt").files[0].path.read_bytes() == b"all there is"
    site.pages["/broken.txt"] = status(200, body[:-9], Transfer_Encoding="chunked")
    with pytest.raises(InputError, match="broke"):
        fetch(f"{site.url}/broken.txt", Limits(attempts=1))
    site.pages["/empty.txt"] = status(200)
    assert fetch(f"{site.url}/empty.txt").files[0].path.read_bytes() == b""


def test_nobody_there(fetch: Callable) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match="cannot connect"):
            fetch(f"http://127.0.0.1:{taken.getsockname()[1]}/a.txt", Limits(attempts=2))
    with pytest.raises(InputError, match="no host called nowhere.invalid"):
        fetch("http://nowhere.invalid/a.txt")


def test_two_processes_do_not_write_one_download(site: Site, fetch: Callable, tmp_path: Path) -> None:
    site.pages["/a.txt"] = Stored(b"text")
    slot = Slot(tmp_path / "downloads", f"{site.url}/a.txt")
    with slot.held(1), pytest.raises(LockedError, match="another process downloads"):
        fetch(f"{site.url}/a.txt", Limits(total_s=0.2))
    assert fetch(f"{site.url}/a.txt", QUICK).files[0].path.read_bytes() == b"text"


def test_spoilt_records_mean_a_new_download(site: Site, fetch: Callable, tmp_path: Path) -> None:
    page = site.pages["/a.txt"] = Stored(b"text")
    url = f"{site.url}/a.txt"
    fetch(url)
    folder = folder_of(url, tmp_path)
    for spoilt in (b"", b"[]", b"\xff", b'{"url": 1}', b'{"version": {"etag": 1}, "durable": 99}'):
        (folder / "fetched.json").write_bytes(spoilt)
        (folder / "partial.json").write_bytes(spoilt)
        (folder / "partial.tmp").write_bytes(b"left over")
        assert fetch(url).files[0].path.read_bytes() == b"text"
    assert set(page.sent) == {200}


@pytest.mark.parametrize(
    ("url", "kind", "name"),
    [
        ("https://a.org/", "text/html; charset=utf-8", "index.html"),
        ("https://a.org/wiki/K%C3%A4se", "text/html", "K-se.html"),
        ("https://a.org/index.php?x=1", "text/html", "index.php.html"),
        ("https://a.org/a.py", "text/plain", "a.py"),
        ("https://a.org/a.HTM", "text/html", "a.HTM"),
        ("https://a.org/rows", "application/x-ndjson", "rows.jsonl"),
        ("https://a.org/a.jsonl.gz", "application/gzip", "a.jsonl.gz"),
        ("https://a.org/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "", "passwd"),
        ("https://a.org/..", "", "index"),
        ("https://a.org/x%00y.txt", "", "x-y.txt"),
    ],
)
def test_names_of_files(url: str, kind: str, name: str) -> None:
    assert file_name(parse_url(url), kind) == name


@given(st.text(max_size=300), st.text(max_size=40))
def test_a_name_never_leaves_its_folder(path: str, kind: str) -> None:
    try:
        url = parse_url(f"https://a.org/{path}")
    except InputError:
        return
    name = file_name(url, kind)
    assert name
    assert Path(name).name == name
    assert not name.startswith(".")
    assert len(name.encode()) < 200


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for the name localhost, with its key in the same file."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "cert", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    (folder / "both.pem").write_bytes((folder / "cert").read_bytes() + (folder / "key").read_bytes())
    return folder / "both.pem"


@pytest.fixture
def secure_site(site: Site, certificate: Path) -> Iterator[tuple[Site, list[str | None]]]:
    """(the site behind TLS, the server names that clients asked for)."""
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    site.server.socket = context.wrap_socket(site.server.socket, server_side=True)
    return site, names


def test_tls_checks_the_name_and_not_the_address(
    secure_site: tuple[Site, list[str | None]], certificate: Path, fetch: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, names = secure_site
    site.pages["/a.txt"] = Stored(b"text")
    once = Limits(attempts=1)
    to_loopback = Network(True, lambda host, port: ["127.0.0.1"])
    with pytest.raises(InputError, match="no valid certificate"):
        fetch(f"https://localhost:{site.port}/a.txt", once, to_loopback)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert fetch(f"https://localhost:{site.port}/a.txt", once, to_loopback).files[0].path.read_bytes() == b"text"
    assert site.requests[-1].headers["Host"] == f"localhost:{site.port}"
    assert names[-1] == "localhost"
    with pytest.raises(InputError, match="no valid certificate"):
        fetch(f"https://other.test:{site.port}/a.txt", once, to_loopback)
    assert names[-1] == "other.test"
    site.pages["/down"] = redirect(f"http://127.0.0.1:{site.port}/a.txt")
    with pytest.raises(InputError, match="from https to http"):
        fetch(f"https://localhost:{site.port}/down", once, to_loopback)
