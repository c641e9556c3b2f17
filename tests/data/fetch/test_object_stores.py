"""s3, gs and hf against small servers that speak as much of their protocols as reading needs."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from llmctl.config.errors import InputError
from llmctl.data.collect.fetch import Haul, Limits, Network, fetch_all
from llmctl.data.collect.fetch.downloads import Slot
from llmctl.pipeline.job import Silent
from tests.data.fetch.servers import Handler, Site, reply

BIG = os.urandom(1 << 20) * 9  # more than two blocks
FILES = {
    "texts/a.txt": b"first",
    "texts/b.jsonl": b'{"text": "second"}\n',
    "texts/deep/c d+e.txt": b"third",
    "texts/image.png": b"\x89PNG",
    "other.txt": b"elsewhere",
}
CREDENTIALS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3",
    "GOOGLE_APPLICATION_CREDENTIALS", "HF_TOKEN",
)  # fmt: skip


def md5(content: bytes) -> bytes:
    return hashlib.md5(content, usedforsecurity=False).digest()


class Bucket:
    """The contents of one bucket or repository, and what goes wrong with it.

    Attributes:
        reads: (key, first byte asked for) of each read of contents.
        cuts: after how many bytes the next reads break off.
        headers: of every request.
    """

    def __init__(self) -> None:
        self.files = dict(FILES)
        self.etags: dict[str, str] = {}
        self.reads: list[tuple[str, int]] = []
        self.cuts: list[int] = []
        self.extra: dict[str, str] = {}

    def etag(self, key: str) -> str:
        return self.etags.get(key, md5(self.files[key]).hex())

    def send(self, handler: Handler, key: str, **headers: str) -> None:
        """The contents, or the range of them that is asked for."""
        content = self.files[key]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        code, start, end = 200, 0, len(content)
        if asked:
            code, start = 206, int(asked[1])
            end = min(int(asked[2] or end) + 1, end)
            headers["Content_Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        body = content[start:end]
        if handler.command == "HEAD":
            headers["Content_Length"] = str(len(content))
        else:
            self.reads.append((key, start))
            headers["Content_Length"] = str(len(body))
            if self.cuts:
                body = body[: self.cuts.pop(0)]
        reply(handler, code, body, **headers)

    def s3(self, handler: Handler) -> None:
        """ListObjectsV2, HeadObject and GetObject of the bucket `bucket`, path style."""
        url = urlsplit(handler.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        bucket, _, key = unquote(url.path.removeprefix("/")).partition("/")
        if bucket != "bucket":
            reply(handler, 404, b"<Error><Code>NoSuchBucket</Code></Error>")
        elif not key:
            reply(handler, 200, self._s3_listing(query).encode(), Content_Type="application/xml")
        elif key in self.files:
            time = "Wed, 01 Oct 2025 10:00:00 GMT"
            self.send(handler, key, ETag=f'"{self.etag(key)}"', Last_Modified=time, **self.extra)
        else:
            reply(handler, 404, b"<Error><Code>NoSuchKey</Code></Error>")

    def _s3_listing(self, query: dict[str, str]) -> str:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        entries, folders = [], set()
        for key, content in sorted(self.files.items()):
            if not key.startswith(prefix):
                continue
            rest = key.removeprefix(prefix)
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            entries.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2025-10-01T10:00:00.000Z</LastModified>"
                f"<ETag>&quot;{self.etag(key)}&quot;</ETag><Size>{len(content)}</Size></Contents>"
            )
        common = [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)]
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>'
            f"<KeyCount>{len(entries) + len(common)}</KeyCount><IsTruncated>false</IsTruncated>"
            f"{''.join(entries)}{''.join(common)}</ListBucketResult>"
        )

    def gs(self, handler: Handler) -> None:
        """The JSON interface of Google Cloud Storage: list, get, media."""
        url = urlsplit(handler.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        found = re.fullmatch(r"(?:/download)?/storage/v1/b/bucket/o(?:/(.+))?", url.path)
        key = unquote(found[1]) if found and found[1] else ""
        if found is None or (key and key not in self.files):
            reply(handler, 404, b'{"error": {"code": 404, "message": "not found"}}')
        elif key and query.get("alt") == "media":
            self.send(handler, key)
        else:
            answer = self._gs_object(key) if key else self._gs_listing(query)
            reply(handler, 200, json.dumps(answer).encode(), Content_Type="application/json")

    def _gs_object(self, key: str) -> dict[str, str]:
        return {
            "kind": "storage#object", "name": key, "bucket": "bucket", "generation": self.etag(key),
            "size": str(len(self.files[key])), "md5Hash": base64.b64encode(bytes.fromhex(self.etag(key))).decode(),
            "updated": "2025-10-01T10:00:00.000Z", "timeCreated": "2025-10-01T10:00:00.000Z",
        }  # fmt: skip

    def _gs_listing(self, query: dict[str, str]) -> dict[str, object]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, folders = [], set()
        for key in sorted(self.files):
            if not key.startswith(prefix):
                continue
            rest = key.removeprefix(prefix)
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(self._gs_object(key))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}

    def hf(self, handler: Handler) -> None:
        """Repository information, tree listings and contents of the data set `me/repo` at one commit."""
        url = urlsplit(handler.path)
        commit = hashlib.sha1(repr(sorted(self.files.items())).encode(), usedforsecurity=False).hexdigest()
        revision = f"(?:main|{commit})"
        path = unquote(url.path)
        if re.fullmatch(rf"/api/datasets/me/repo(/revision/{revision})?", path):
            reply(handler, 200, json.dumps({"id": "me/repo", "sha": commit}).encode(), Content_Type="application/json")
        elif found := re.fullmatch(rf"/api/datasets/me/repo/tree/{revision}/?(.*)", path):
            recursive = parse_qs(url.query).get("recursive", ["False"])[0].lower() in ("true", "1")
            listing = self._hf_tree(found[1], recursive=recursive)
            reply(handler, 200 if listing else 404, json.dumps(listing).encode(), Content_Type="application/json")
        elif (found := re.fullmatch(rf"/datasets/me/repo/resolve/{revision}/(.+)", path)) and found[1] in self.files:
            self.send(handler, found[1], ETag=f'"{self.etag(found[1])}"', X_Repo_Commit=commit)
        else:
            reply(handler, 404, b"{}", X_Error_Code="EntryNotFound")

    def _hf_tree(self, folder: str, *, recursive: bool) -> list[dict[str, object]]:
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, object]] = {}
        for key, content in sorted(self.files.items()):
            if not key.startswith(prefix):
                continue
            parts = key.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                name = prefix + "/".join(parts[:depth])
                entries[name] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
            if recursive or len(parts) == 1:
                oid = hashlib.sha1(content, usedforsecurity=False).hexdigest()
                entries[key] = {"type": "file", "oid": oid, "size": len(content), "path": key}
                if len(content) > 1000:
                    sha = self.etags.get(key, hashlib.sha256(content).hexdigest())
                    entries[key]["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 130}
        return list(entries.values())


ROOTS = {"s3": "s3://bucket", "gs": "gs://bucket", "hf": "hf://datasets/me/repo"}


@pytest.fixture(params=["s3", "gs", "hf"])
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def bucket(scheme: str, site: Site, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for variable in CREDENTIALS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", site.url)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", site.url)
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    there = Bucket()
    site.rest = getattr(there, scheme)
    return there


def contents(haul: Haul) -> dict[str, bytes]:
    return {file.name: file.path.read_bytes() for file in haul.files}


def test_a_file_a_folder_and_a_pattern(scheme: str, bucket: Bucket, fetch: Callable) -> None:
    root = ROOTS[scheme]
    one = fetch(f"{root}/texts/a.txt")
    assert (one.name, contents(one)) == ("a.txt", {"a.txt": b"first"})
    (file,) = one.files
    assert file.sha256 == hashlib.sha256(b"first").hexdigest()
    assert file.path.name == "a.txt"
    assert file.url == f"{root}/texts/a.txt"
    if scheme != "hf":
        assert file.time.startswith("2025-10-01T10:00:00")

    folder = fetch(f"{root}/texts/", wanted=lambda name: not name.endswith(".png"))
    assert (folder.name, folder.skipped) == ("texts", 1)
    assert list(contents(folder).items()) == [
        ("a.txt", b"first"), ("b.jsonl", b'{"text": "second"}\n'), ("deep/c d+e.txt", b"third"),
    ]  # fmt: skip
    assert contents(fetch(f"{root}/texts/*.txt")) == {"a.txt": b"first"}
    assert contents(fetch(f"{root}/texts/**/*.txt")) == {"a.txt": b"first", "deep/c d+e.txt": b"third"}


def test_unchanged_files_are_not_read_again(scheme: str, bucket: Bucket, fetch: Callable) -> None:
    url = f"{ROOTS[scheme]}/texts/"
    first = fetch(url)
    count = len(bucket.reads)
    assert contents(fetch(url)) == contents(first)
    assert len(bucket.reads) == count
    bucket.files["texts/a.txt"] = b"changed"
    assert contents(fetch(url))["a.txt"] == b"changed"


def test_a_broken_download_goes_on(scheme: str, bucket: Bucket, fetch: Callable, tmp_path: Path) -> None:
    """The store goes away in the middle; a later call reads the missing blocks only."""
    bucket.files["big.txt"] = BIG
    url, once = f"{ROOTS[scheme]}/big.txt", Limits(attempts=1, idle_s=5)
    send = bucket.send

    def failing(handler: Handler, key: str, **headers: str) -> None:
        late = handler.command == "GET" and not handler.headers.get("Range", "bytes=0-").startswith("bytes=0-")
        reply(handler, 403, b"gone") if late else send(handler, key, **headers)

    bucket.send = failing  # type: ignore[method-assign]
    with pytest.raises(InputError):
        fetch(url, once)
    slots = [path.parent for path in (tmp_path / "downloads").glob("*/partial.json")]
    assert len(slots) == 1
    there = (slots[0] / "partial.tmp").stat().st_size
    assert 0 < there < len(BIG)
    bucket.send = send  # type: ignore[method-assign]
    bucket.reads.clear()
    assert contents(fetch(url, once)) == {"big.txt": BIG}
    assert min(start for _, start in bucket.reads) >= there


def test_what_does_not_match_its_checksum_is_refused(scheme: str, bucket: Bucket, fetch: Callable) -> None:
    bucket.files["big.txt"] = BIG
    bucket.etags["big.txt"] = "00" * 32 if scheme == "hf" else "00" * 16
    with pytest.raises(InputError, match="damaged or another file"):
        fetch(f"{ROOTS[scheme]}/big.txt")


def test_a_digest_given_by_the_user_is_checked(scheme: str, bucket: Bucket, fetch: Callable) -> None:
    url = f"{ROOTS[scheme]}/texts/a.txt#sha256="
    assert contents(fetch(url + hashlib.sha256(b"first").hexdigest())) == {"a.txt": b"first"}
    with pytest.raises(InputError, match="damaged or another file"):
        fetch(url + "0" * 64)
    with pytest.raises(InputError, match="stands for 4 files"):
        fetch(f"{ROOTS[scheme]}/texts/#sha256={'0' * 64}")


def test_bounds_and_missing_files(scheme: str, bucket: Bucket, fetch: Callable) -> None:
    bucket.files["big.txt"] = BIG
    with pytest.raises(InputError, match="more than 1000 bytes"):
        fetch(f"{ROOTS[scheme]}/big.txt", Limits(max_bytes=1000))
    for missing in ("nothing.txt", "nowhere/", "no*.txt"):
        with pytest.raises(InputError, match="there is nothing at|is no"):
            fetch(f"{ROOTS[scheme]}/{missing}", Limits(attempts=1, idle_s=5))
    assert bucket.reads == []


@pytest.mark.parametrize(
    "address", ["s3://", "s3:///key", "s3://a b/c", "gs://../x", "s3://b\\x/y", "hf://a%2f/b", "s3://b/\n"]
)
def test_names_that_are_no_buckets(address: str, fetch: Callable) -> None:
    with pytest.raises(InputError, match="no bucket's name"):
        fetch(address)


@pytest.mark.parametrize("scheme", ["s3"], indirect=True)
@pytest.mark.parametrize(
    ("etag", "extra"),
    [("0" * 32 + "-2", {}), ("0" * 32, {"x_amz_server_side_encryption": "aws:kms"})],
)
def test_an_s3_etag_that_is_no_md5_is_not_compared(
    etag: str, extra: dict[str, str], bucket: Bucket, fetch: Callable
) -> None:
    bucket.etags["other.txt"], bucket.extra = etag, extra
    assert contents(fetch("s3://bucket/other.txt")) == {"other.txt": b"elsewhere"}


@pytest.mark.parametrize("scheme", ["s3"], indirect=True)
def test_an_object_that_changes_while_it_is_read_is_refused(bucket: Bucket, fetch: Callable, tmp_path: Path) -> None:
    bucket.etags["other.txt"] = "0" * 32 + "-2"  # no MD5 that would tell
    send, heads = bucket.send, []

    def changing(handler: Handler, key: str, **headers: str) -> None:
        if handler.command == "HEAD":
            heads.append(key)
            bucket.etags[key] = f"{len(heads):032}-2"
            headers["ETag"] = f'"{bucket.etag(key)}"'
        send(handler, key, **headers)

    bucket.send = changing  # type: ignore[method-assign]
    with pytest.raises(InputError, match="was changed while it was read"):
        fetch("s3://bucket/other.txt")
    assert not list((tmp_path / "downloads").rglob("*.txt"))


@pytest.mark.parametrize("scheme", ["s3", "hf"], indirect=True)
def test_credentials_come_from_the_environment_and_stay_there(
    scheme: str, bucket: Bucket, site: Site, fetch: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / ".aws").mkdir(parents=True)
    (home / ".aws" / "credentials").write_text("[default]\naws_access_key_id=INFILE\naws_secret_access_key=x\n")
    monkeypatch.setenv("HOME", str(home))
    url = f"{ROOTS[scheme]}/other.txt"
    fetch(url)
    assert not any("Authorization" in request.headers for request in site.requests)
    site.requests.clear()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY-IN-ENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET-IN-ENV")
    monkeypatch.setenv("HF_TOKEN", "hf_SECRET-IN-ENV")
    bucket.files["other.txt"] = b"newer"
    fetch(url)
    sent = {request.headers.get("Authorization", "") for request in site.requests}
    assert all("KEY-IN-ENV" in text or "hf_SECRET-IN-ENV" in text for text in sent)
    kept = b"".join(path.read_bytes() for path in (tmp_path / "downloads").rglob("*") if path.is_file())
    assert b"IN-ENV" not in kept


@pytest.mark.parametrize(("scheme", "extra"), [("s3", "s3"), ("gs", "gcs"), ("hf", "hf")])
def test_a_missing_extra_is_named(scheme: str, extra: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "for name in ('s3fs', 'gcsfs', 'huggingface_hub'): sys.modules[name] = None\n"
        "from llmctl.data.collect.fetch import *\nfrom llmctl.pipeline.job import Silent\n"
        "from llmctl.config.errors import InputError\n"
        "try: fetch_all([sys.argv[1]], Path(sys.argv[2]), Limits(), Network(), Silent())\n"
        "except InputError as error: print(error.one_line)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"{scheme}://bucket/a.txt", str(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"pip install 'llmctl[{extra}]'" in done.stdout
    assert done.stdout.count("\n") == 1


def test_many_files_come_in_order(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket()
    bucket.files = {f"many/{number:03}.txt": str(number).encode() for number in range(60)}
    site.rest = bucket.s3
    monkeypatch.setenv("AWS_ENDPOINT_URL", site.url)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    hauls = fetch_all(["s3://bucket/many"], tmp_path, Limits(), Network(True), Silent())
    haul = hauls["s3://bucket/many"]
    assert [file.path.read_bytes() for file in haul.files] == [str(number).encode() for number in range(60)]
    assert Slot(tmp_path, "s3://bucket/many/007.txt").folder.is_dir()


def test_a_full_disk_is_called_that(tmp_path: Path, site: Site) -> None:
    """A file system without room for the file: the command says so, and is no bug."""
    bucket = Bucket()
    bucket.files["big.txt"] = BIG
    site.rest = bucket.s3
    code = (
        "import resource, signal, sys; from pathlib import Path; from llmctl.data.collect.fetch import *\n"
        "from llmctl.pipeline.job import Silent; from llmctl.config.errors import InputError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try: fetch_all([sys.argv[1]], Path(sys.argv[2]), Limits(), Network(True), Silent())\n"
        "except InputError as error: print(error.one_line)"
    )
    environment = {**os.environ, "AWS_ENDPOINT_URL": site.url, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    site.pages["/web.txt"] = lambda handler: reply(handler, 200, BIG)
    for url in ("s3://bucket/big.txt", f"{site.url}/web.txt"):
        done = subprocess.run(
            [sys.executable, "-c", code, url, str(tmp_path)],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        assert "File too large" in done.stdout, done
    assert [path for path in site.paths() if path == "/web.txt"] == ["/web.txt"]  # no further try
