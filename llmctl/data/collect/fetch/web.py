"""Downloads over http and https: goes on where it stopped, and keeps what the server says is unchanged."""

from __future__ import annotations

import email.utils
import re
from datetime import UTC
from pathlib import PurePosixPath
from urllib.parse import unquote

from llmctl.config.errors import InputError
from llmctl.data.collect.fetch.address import Url
from llmctl.data.collect.fetch.checksums import promised_by_headers, wanted_sha256
from llmctl.data.collect.fetch.client import Answer, Client, with_retries
from llmctl.data.collect.fetch.downloads import Record, Slot, Version
from llmctl.data.collect.fetch.meter import Meter
from llmctl.data.collect.fetch.network import Deadline, LostError

CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
HTML_ENDINGS = {".html", ".htm", ".xhtml"}
ENDINGS = {  # for URLs whose path has none
    "text/html": ".html",
    "application/xhtml+xml": ".html",
    "text/markdown": ".md",
    "text/csv": ".csv",
    "application/jsonl": ".jsonl",
    "application/x-ndjson": ".jsonl",
    "application/vnd.apache.parquet": ".parquet",
    "application/x-tar": ".tar",
    "application/zip": ".zip",
    "application/warc": ".warc",
    "text/plain": ".txt",
}
LONGEST_NAME = 120


def safe_file_name(text: str) -> str:
    """`text` as the name of a file: letters, digits, `.`, `_`, `-`; its last characters where it is too long."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[-LONGEST_NAME:].strip("-.") or "index"


def file_name(url: Url, content_type: str) -> str:
    """What the file behind `url` is called; its ending tells what is in it, so the server's type can add one."""
    path = PurePosixPath(unquote(url.target.partition("?")[0], errors="replace"))
    name = safe_file_name(path.name)
    suffix = PurePosixPath(name).suffix.lower()
    ending = ENDINGS.get(content_type.partition(";")[0].strip().lower(), "")
    if not suffix or (ending == ".html" and suffix not in HTML_ENDINGS):
        return name + ending
    return name


def iso_time(http_date: str) -> str:
    """An HTTP date as ISO 8601 in UTC; "" where it is none."""
    try:
        return email.utils.parsedate_to_datetime(http_date).astimezone(UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError):
        return ""


def fetch_page(url: Url, slot: Slot, client: Client, meter: Meter) -> Record:
    """Bring what is behind one URL into its slot, which this process holds.

    Raises:
        InputError: where it is refused, missing, too large, damaged, or the server does not answer in time.
    """
    wanted = wanted_sha256(url.fragment)
    held = slot.record()
    if held is not None and wanted == held.sha256:
        return held
    slot.partial.load()
    deadline = Deadline(client.limits.total_s)
    download = _Download(url, slot, client, deadline, meter, held, {"sha256": wanted} if wanted else {})
    return with_retries(download.attempt, client.limits, deadline, lambda: slot.partial.bytes)


class _Download:
    """One URL's download over all its tries."""

    def __init__(
        self,
        url: Url,
        slot: Slot,
        client: Client,
        deadline: Deadline,
        meter: Meter,
        held: Record | None,
        promised: dict[str, str],
    ) -> None:
        self.url, self.slot, self.client, self.deadline = url, slot, client, deadline
        self.meter, self.held, self.promised = meter, held, promised

    def attempt(self) -> Record:
        """One try: ask for the rest, for what is newer than the finished file, or for all."""
        partial = self.slot.partial
        headers: dict[str, str] = {}
        if partial.version is not None and partial.bytes and partial.version.condition:
            headers = {"Range": f"bytes={partial.bytes}-", "If-Range": partial.version.condition}
        elif self.held is not None and not self.promised:
            if self.held.etag:
                headers = {"If-None-Match": self.held.etag}
            elif self.held.last_modified:
                headers = {"If-Modified-Since": self.held.last_modified}
        with self.client.get(self.url, headers, self.deadline) as answer:
            if answer.status == 304 and self.held is not None and "Range" not in headers:
                return self.held
            return self._take(answer)

    def _take(self, answer: Answer) -> Record:
        partial = self.slot.partial
        version = Version(answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", ""), _length(answer))
        if answer.status == 206:
            version = self._continued(answer, version)
        elif answer.status == 200:
            partial.begin(version)
            self.meter.expect(version.bytes)
        elif answer.status == 416:
            partial.drop()
            raise LostError(f"{self.url} has no byte after those that are here; it is fetched anew")
        else:
            raise _refusal(self.url, answer.status)
        self._check_size(version.bytes or 0)
        self._read(answer)
        if version.bytes is not None and partial.bytes != version.bytes:
            raise LostError(f"{self.url} broke off after {partial.bytes} of {version.bytes} bytes")
        promised = {**promised_by_headers(answer.headers, whole=answer.status == 200), **self.promised}
        name = file_name(self.url, answer.headers.get("Content-Type", ""))
        return self.slot.finish(name, version, iso_time(version.last_modified), promised)

    def _read(self, answer: Answer) -> None:
        partial = self.slot.partial
        try:
            for block in answer.blocks():
                self._check_size(partial.bytes + len(block))
                partial.write(block)
                self.meter.add(len(block))
        except LostError:
            if partial.version is None or not partial.version.condition:
                partial.drop()  # the next try cannot know that it gets the same version
            raise

    def _continued(self, answer: Answer, version: Version) -> Version:
        """The version that a partial answer belongs to: the one whose beginning is here.

        Raises:
            LostError: where it is another one, or does not begin where it should; the beginning is dropped then.
        """
        partial = self.slot.partial
        there = CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        total = None if there is None or there[3] == "*" else int(there[3])
        known = partial.version
        if (
            known is None
            or there is None
            or int(there[1]) != partial.bytes
            or (known.etag and version.etag and version.etag != known.etag)
            or (known.bytes is not None and total is not None and total != known.bytes)
        ):
            partial.drop()
            raise LostError(f"{self.url} answers with a part that does not fit; it is fetched anew")
        self.meter.expect(None if total is None else total - partial.bytes)
        return Version(known.etag, known.last_modified, known.bytes if total is None else total)

    def _check_size(self, size: int) -> None:
        limit = self.client.limits.max_bytes
        if size > limit:
            self.slot.partial.drop()
            raise InputError(f"{self.url} has more than {limit} bytes", hint="raise max_download_bytes")


def _length(answer: Answer) -> int | None:
    """Content-Length, where it bounds the body."""
    text = answer.headers.get("Content-Length", "").strip()
    if "Transfer-Encoding" in answer.headers or not (text.isascii() and text.isdigit()):
        return None
    return int(text[:18])


def _refusal(url: Url, status: int) -> InputError:
    hints = {
        401: "it asks for a login: download it yourself and give the file",
        403: "the server forbids it: download it yourself and give the file",
        404: "check the URL",
        410: "it was removed",
        451: "it is not available for legal reasons",
    }
    return InputError(f"{url} answers with status {status}", hint=hints.get(status, "check the URL"))
