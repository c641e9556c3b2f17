"""Common Crawl's formats: pages of WARC, texts of WET, and the older ARC; records parsed by fastwarc."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from llmctl.data.collect.document import Document, UnreadableError
from llmctl.data.collect.entry import Entry
from llmctl.data.collect.framing import ARC, WARC, Frame, Framer, Grammar, blocks
from llmctl.data.collect.streams import FREE_BYTES
from llmctl.data.collect.text import guess

RESPONSE, RESOURCE, CONVERSION = 4, 8, 128  # fastwarc's WarcRecordType; the type itself does not compare as an int
PAGE_TYPES = {"text/html", "text/plain", "application/xhtml+xml"}
HEADER_BYTES = 1 << 20  # of HTTP, beside a body of the longest document
READ_BYTES = 1 << 18
# Arrow's names; its gzip takes zlib's format too, which is what `deflate` means.
CONTENT_CODECS = {
    "": "", "identity": "", "gzip": "gzip", "x-gzip": "gzip", "deflate": "gzip", "br": "brotli", "zstd": "zstd",
}  # fmt: skip
WARC_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z?")
ARC_DATE = re.compile(rb"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)")


def read_warc(entry: Entry) -> Iterator[Document]:
    """The pages of a WARC file, or the texts of a WET file, in its order.

    Kept are responses of status 200, resources and conversions whose type is HTML, XHTML or plain text; other
    records are counted as `record_type`, `http_status` or `content_type`, broken ones as `damaged`.
    """
    yield from _documents(entry, WARC, _of_warc)


def read_arc(entry: Entry) -> Iterator[Document]:
    """The pages of an ARC file, as `read_warc` gives them."""
    yield from _documents(entry, ARC, _of_arc)


def _documents(
    entry: Entry, grammar: Grammar, document_of: Callable[[Frame, int, Entry], Document]
) -> Iterator[Document]:
    tally = entry.reading.tally
    sound = broken = 0
    for number, frame in enumerate(Framer(grammar, blocks(entry), _longest(entry)).frames(), start=1):
        where = f"{entry.where} record {number}"
        if frame.raw is None:
            broken += 1
            tally.drop(frame.reason, f"{where} is damaged" if frame.reason == "damaged" else f"{where} is too long")
            continue
        sound += 1
        try:
            document = document_of(frame, number, entry)
        except UnreadableError as fault:
            tally.drop(fault.reason, fault.what or where)
            continue
        except OSError as error:  # fastwarc's, as everything here is in memory
            tally.drop("damaged", f"{where}: {error}")
            continue
        yield document
    if broken and not sound and entry.strict:
        raise UnreadableError(
            "damaged", f"{entry.where} is truncated or damaged: no record is whole", "download it again"
        )


def _longest(entry: Entry) -> int:
    return entry.reading.config.max_document_bytes + HEADER_BYTES


def _of_warc(frame: Frame, number: int, entry: Entry) -> Document:
    from fastwarc.warc import WarcRecord

    record = WarcRecord.from_bytes(frame.raw or b"")
    kind = int(record.record_type)
    headers = record.headers
    if kind == RESPONSE and record.is_http:
        text = _page(record, entry, frame)
    elif kind in (RESOURCE, CONVERSION):
        text = _plain(record, headers.get("Content-Type") or "", entry)
    else:
        raise UnreadableError("content_type" if kind == RESPONSE else "record_type", "")
    record_id = (headers.get("WARC-Record-ID") or "").strip("<> ").removeprefix("urn:uuid:")
    date = WARC_DATE.fullmatch((headers.get("WARC-Date") or "").strip())
    return Document(
        id=record_id or f"{entry.name}:{number}",
        text=text,
        source=entry.reading.source,
        url=(headers.get("WARC-Target-URI") or "").strip("<> "),
        license=entry.reading.license,
        time=date[0] if date else "",
    )


def _of_arc(frame: Frame, number: int, entry: Entry) -> Document:
    from fastwarc.warc import WarcRecord, WarcRecordType

    raw = frame.raw or b""
    url, _, date, *_ = raw[: frame.head].split(b" ")
    if not url.lower().startswith((b"http:", b"https:")):
        raise UnreadableError("record_type", "")
    record = WarcRecord()
    record.init_headers(WarcRecordType.response, content_length=0)
    record.is_http = True
    record.set_bytes_content(raw[frame.head :])
    parts = ARC_DATE.fullmatch(date)
    return Document(
        id=f"{entry.name}:{number}",
        text=_page(record, entry, frame),
        source=entry.reading.source,
        url=url.decode("utf-8", "replace"),
        license=entry.reading.license,
        time="{}-{}-{}T{}:{}:{}Z".format(*(part.decode() for part in parts.groups())) if parts else "",
    )


def _page(record: Any, entry: Entry, frame: Frame) -> str:
    """The text of an HTTP response: unchunked, decompressed, decoded."""
    record.parse_http(auto_decode="transfer")
    http = record.http_headers
    status = http.status_code if http is not None else None
    if status is None:
        raise UnreadableError("damaged", "")
    if status != 200:
        raise UnreadableError("http_status", "")
    kind = (record.http_content_type or "").strip().lower()
    if kind not in PAGE_TYPES:
        raise UnreadableError("content_type", "")
    content = _body(_decoded(record.reader, http.get("Content-Encoding") or ""), entry, len(frame.raw or b""))
    return guess(content, record.http_charset or "", html=kind != "text/plain")


def _plain(record: Any, content_type: str, entry: Entry) -> str:
    kind, _, parameters = content_type.lower().partition(";")
    if kind.strip() not in PAGE_TYPES:
        raise UnreadableError("content_type", "")
    charset = parameters.partition("charset=")[2].strip(' "')
    return guess(_body(record.reader, entry, record.content_length), charset or "utf-8", html="html" in kind)


def _decoded(reader: Any, encodings: str) -> Any:
    """A reader of the decompressed payload. fastwarc would unfold all of it at once."""
    for name in reversed(encodings.lower().split(",")):
        codec = CONTENT_CODECS.get(name.strip())
        if codec is None:
            raise UnreadableError("damaged", "")
        if codec:
            reader = pa.CompressedInputStream(pa.BufferReader(reader.read()), codec)
    return reader


def _body(reader: Any, entry: Entry, stored: int) -> bytes:
    """The payload, read no further than the longest document or the ratio allows."""
    config = entry.reading.config
    content = bytearray()
    while data := reader.read(READ_BYTES):
        content += data
        if len(content) > FREE_BYTES and len(content) > config.max_ratio * stored:
            raise UnreadableError(
                "decompression_bomb", f"{entry.where}: a page unfolds to over {config.max_ratio} times"
            )
        if len(content) > config.max_document_bytes:
            raise UnreadableError("too_large", "")
    return bytes(content)
