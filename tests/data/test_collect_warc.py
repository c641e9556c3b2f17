"""WARC, WET and ARC: what is kept, what is counted, and that nothing broken stops a run."""

import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard

from llmctl.config.collect import CollectConfig
from llmctl.config.errors import InputError
from llmctl.data.collect import run
from llmctl.data.collect.document import Document, Tally
from llmctl.data.collect.entry import Entry, Reading
from llmctl.data.collect.read import read_entry
from llmctl.data.collect.streams import Budget
from tests.data.broken import arc, http, mutations, page, record, tar, zipped
from tests.data.conftest import rows_of


def read(name: str, data: bytes, *, strict: bool = False, **settings: object) -> tuple[list[Document], Tally]:
    """(documents, tally) of one file's bytes."""
    config, tally = CollectConfig.model_validate(settings), Tally()
    reading = Reading("test", config, tally, Budget(lambda: len(data), config.max_ratio))
    entry = Entry(name, io.BufferedReader(io.BytesIO(data)), name, reading, strict=strict)
    return list(read_entry(entry)), tally


def texts(documents: list[Document]) -> list[str]:
    return [document.text for document in documents]


def test_a_page_with_everything_that_is_known_of_it() -> None:
    (document,), tally = read("c.warc", page(7))
    assert document == Document(
        id="00000000-0000-0000-0000-000000000007",
        text="<html><body><p>Page 7 é</p></body></html>",
        source="test",
        url="https://a.example/7",
        time="2024-05-06T07:08:09Z",
    )
    assert tally.dropped == {}


PACKED = {
    "plain": ("c.warc", b"".join),
    "gzip by record": ("c.warc.gz", lambda records: b"".join(map(gzip.compress, records))),
    "gzip whole": ("c.warc.gz", lambda records: gzip.compress(b"".join(records))),
    "gzip across records": (
        "c.warc.gz",
        lambda records: gzip.compress(b"".join(records)[:700]) + gzip.compress(b"".join(records)[700:]),
    ),
    "zstd": ("c.warc.zst", lambda records: b"".join(map(zstandard.compress, records))),
}


@pytest.mark.parametrize("packing", PACKED)
def test_every_packing_gives_the_same(packing: str) -> None:
    name, pack = PACKED[packing]
    documents, tally = read(name, pack([page(number) for number in range(5)]), strict=True)
    assert [document.url for document in documents] == [f"https://a.example/{number}" for number in range(5)]
    assert tally.dropped == {}


def test_what_is_no_page_is_counted_by_reason() -> None:
    records = [
        record(b"software: x", 0, "warcinfo"),
        record(b"GET / HTTP/1.1\r\n\r\n", 1, "request"),
        record(http(b"gone", status="404 Not Found"), 2),
        record(http(b"moved", status="301 Moved"), 3),
        record(http(b"%PDF", kind="application/pdf"), 4),
        record(b"1.2.3.4", 5, "response", Content_Type="text/dns"),
        record(http(b"plain words", kind="text/plain"), 6),
        record(http(b"<p>strict</p>", kind="application/xhtml+xml"), 7),
        record(http(b"x" * 50), 8),
        record(b"{}", 9, "metadata"),
    ]
    documents, tally = read("c.warc", b"".join(records), max_document_bytes=40)
    assert texts(documents) == ["plain words", "<p>strict</p>"]
    assert tally.dropped == {"record_type": 3, "http_status": 2, "content_type": 2, "too_large": 1}


def test_payloads_are_unchunked_and_decompressed() -> None:
    body = b"<p>words</p>" * 20
    raw = zlib.compressobj(wbits=-15)
    payloads = [
        http(b"5\r\n<p>wo\r\n7\r\nrds</p>\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
        http(gzip.compress(body), "Content-Encoding: gzip"),
        http(pa.compress(body, codec="brotli", asbytes=True), "Content-Encoding: br"),
        http(zlib.compress(body), "Content-Encoding: deflate"),
        http(raw.compress(body) + raw.flush()[:-1], "Content-Encoding: deflate"),
    ]
    documents, tally = read("c.warc", b"".join(record(block, n) for n, block in enumerate(payloads)))
    assert texts(documents) == ["<p>words</p>", *[body.decode()] * 3]
    assert tally.dropped == {"damaged": 1}


@pytest.mark.parametrize(
    ("kind", "payload", "text"),
    [
        ("text/html; charset=iso-8859-1", b"<p>caf\xe9</p>", "<p>café</p>"),
        ("text/html; charset=nonsense", b"<meta charset=windows-1251><p>\xcf\xf0</p>", None),
        ("text/html", b"<meta charset=shift_jis><p>\x93\xfa\x96\x7b</p>", None),
        ("text/html; charset=utf-8", b"<p>caf\xe9</p>", "<p>café</p>"),
        ("text/html", "<p>中文文本</p>".encode(), "<p>中文文本</p>"),
        ("text/html; charset=utf-16", "\ufeff<p>wide</p>".encode("utf-16-le"), "<p>wide</p>"),
        ("text/html; charset=base64", b"<p>no text codec</p>", "<p>no text codec</p>"),
    ],
)
def test_charsets(kind: str, payload: bytes, text: str | None) -> None:
    (document,), _ = read("c.warc", record(http(payload, kind=kind)))
    if text is None:
        text = payload.decode("windows-1251" if b"1251" in payload else "shift_jis")
    assert document.text == text


@pytest.mark.parametrize(("longest", "reason"), [(16 << 20, "too_large"), (64 << 20, "decompression_bomb")])
def test_a_payload_bomb_costs_its_record_alone(longest: int, reason: str) -> None:
    bomb = gzip.compress(bytes(60 << 20))
    records = [page(0), record(http(bomb, "Content-Encoding: gzip"), 1), page(2)]
    data = b"".join(gzip.compress(one) for one in records)
    documents, tally = read("c.warc.gz", data, max_document_bytes=longest)
    assert [document.id[-1] for document in documents] == ["0", "2"]
    assert tally.dropped == {reason: 1}


BROKEN = {
    "length too short": record(http(b"<p>short</p>"), 9, length=40),
    "length too long": record(http(b"<p>long</p>"), 9, length=300),
    "length absurd": record(http(b"<p>absurd</p>"), 9, length=10**14),
    "length negative": record(http(b"<p>negative</p>"), 9, length=-3),
    "no length": record(http(b"<p>none</p>"), 9).replace(b"Content-Length", b"Content-Width"),
    "chunks of no length": record(http(b"zz\r\n<p>x</p>", "Transfer-Encoding: chunked"), 9),
    "chunk beyond the end": record(http(b"ffffff\r\n<p>x</p>", "Transfer-Encoding: chunked"), 9),
    "not gzip": record(http(b"<p>x</p>", "Content-Encoding: gzip"), 9),
    "no HTTP": record(b"nonsense", 9),
    "garbage between records": b"garbage\r\n\r\n",
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_record_costs_itself_alone(fault: str, packed: bool) -> None:
    records = [page(0), page(1), BROKEN[fault], page(2), page(3)]
    data = b"".join(gzip.compress(one) for one in records) if packed else b"".join(records)
    documents, tally = read("c.warc.gz" if packed else "c.warc", data, strict=True)
    kept = [document.url[-1] for document in documents]
    expected = ["0", "1", "2", "3"]
    if fault == "garbage between records" and not packed:
        expected.remove("1")  # nothing tells the garbage from the end of the record before it
    assert kept == expected
    assert tally.dropped == {"damaged": tally.dropped["damaged"]}
    assert tally.dropped["damaged"] >= 1


def test_damaged_gzip_members_cost_themselves_alone() -> None:
    members = [gzip.compress(page(number)) for number in range(6)]
    members[1] = members[1][:60] + b"\xff" * 30 + members[1][90:]
    members[3] = members[3][: len(members[3]) // 2]
    documents, tally = read("c.warc.gz", b"".join(members), strict=True)
    assert [document.url[-1] for document in documents] == ["0", "2", "4", "5"]
    assert tally.dropped == {"damaged": 2}
    documents, tally = read("c.warc.gz", b"".join(members)[:-30], strict=True)
    assert [document.url[-1] for document in documents] == ["0", "2", "4"]
    assert tally.dropped == {"damaged": 3}


def test_a_file_without_any_record_is_an_error_where_it_was_named() -> None:
    for name, data in (("c.warc", b"hello\n" * 99), ("c.warc.gz", b"hello\n" * 99), ("c.arc", b"hello\n" * 99)):
        with pytest.raises(InputError, match="no record is whole"):
            read(name, data, strict=True)
        assert read(name, data)[1].dropped["damaged"] >= 1
    assert read("c.warc", b"", strict=True)[0] == []


def test_wet() -> None:
    texts_of = [record(f"Größe {n}\n".encode(), n, "conversion") for n in range(3)]
    documents, tally = read("c.warc.wet.gz", b"".join(map(gzip.compress, [record(b"x", 9, "warcinfo"), *texts_of])))
    assert texts(documents) == ["Größe 0\n", "Größe 1\n", "Größe 2\n"]
    assert documents[1].time == "2024-05-06T07:08:09Z"
    assert tally.dropped == {"record_type": 1}


@pytest.mark.parametrize("name", ["old.arc", "old.arc.gz"])
def test_arc(name: str) -> None:
    data = arc({
        "http://a.example/1": http(b"<p>one</p>"),
        "http://a.example/2": http(b"gone", status="404 No"),
        "dns:a.example": b"10.0.0.1",
        "http://a.example/3": http(b"<p>caf\xe9</p>", kind="text/html; charset=latin1"),
    })  # fmt: skip
    documents, tally = read(name, gzip.compress(data) if name.endswith("gz") else data, strict=True)
    assert [(d.text, d.url, d.time) for d in documents] == [
        ("<p>one</p>", "http://a.example/1", "2001-02-03T04:05:06Z"),
        ("<p>café</p>", "http://a.example/3", "2001-02-03T04:05:06Z"),
    ]
    assert tally.dropped == {"record_type": 2, "http_status": 1}


def test_the_stage_counts_every_record(tmp_path: Path, stage: Callable) -> None:
    (tmp_path / "crawl").mkdir()
    (tmp_path / "crawl" / "a.warc.gz").write_bytes(b"".join(gzip.compress(page(n)) for n in range(3)) + b"\x1f\x8b\x08")
    (tmp_path / "crawl" / "b.warc").write_bytes(BROKEN["length too short"] + page(4))
    product, artifact = stage(run, CollectConfig(sources=(str(tmp_path / "crawl"),)))
    assert [row["url"][-1] for row in rows_of(artifact)] == ["0", "1", "2", "4"]
    assert product.totals["in"] == product.totals["documents"] + product.totals["dropped.damaged"] == 6


SOUND = {
    "m.warc": b"".join([page(0), record(http(b"4\r\n<p>x\r\n0\r\n\r\n", "Transfer-Encoding: chunked"), 1), page(2)]),
    "m.warc.gz": b"".join(gzip.compress(page(number)) for number in range(3)),
    "m.arc": arc({"http://a.example/1": http(b"<p>one</p>"), "http://a.example/2": http(b"<p>two</p>")}),
    "m.jsonl.gz": gzip.compress(b'{"text": "one"}\n{"text": "two", "id": 3, "url": "u"}\n' * 5),
    "m.csv": b'id,text\n1,"one, ""two"""\n2,three\n',
    "m.tar": tar({"a.txt": b"one", "b/c.jsonl": b'{"text": "two"}\n'}),
    "m.tar.gz": gzip.compress(tar({"a.txt": b"one", "b.zip": zipped({"c.md": b"inner"})})),
    "m.zip": zipped({"a.txt": b"one" * 50, "b.txt.gz": gzip.compress(b"two")}),
    "m.xml": b"<mediawiki><page><title>T</title><ns>0</ns><id>1</id><revision><text>{{a}} [[b|c]]</text></revision>"
    b"</page></mediawiki>",
    "m.txt.xz": __import__("lzma").compress(b"words " * 50),
    "m.txt.bz2": __import__("bz2").compress(b"words " * 50),
    "m.txt.zst": zstandard.compress(b"words " * 50),
}


MAY_COME_OUT_EMPTY = {"m.tar", "m.zip", "m.xml", "m.csv", "m.warc", "m.arc"}  # cut off at its start, a sound file


@pytest.mark.parametrize("name", SOUND)
def test_ten_thousand_mutated_inputs_neither_crash_nor_vanish(name: str) -> None:
    """Whatever is done to the bytes, each file ends in documents, or in counts, or in both."""
    assert read(name, SOUND[name], strict=True)[0]
    for mutated in mutations(SOUND[name], 850, seed=hash_of(name)):
        documents, tally = read(name, mutated)
        for document in documents:
            document.text.encode()
        assert documents or tally.dropped or tally.skipped or name in MAY_COME_OUT_EMPTY


def hash_of(name: str) -> int:
    return zlib.crc32(name.encode())
