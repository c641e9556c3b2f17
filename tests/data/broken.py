"""Sound and damaged inputs of every container that `collect` reads, made in code; shared by the tests."""

from __future__ import annotations

import gzip
import io
import itertools
import random
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

DATE = "2024-05-06T07:08:09Z"


def http(payload: bytes, *headers: str, status: str = "200 OK", kind: str = "text/html; charset=utf-8") -> bytes:
    """An HTTP response as a WARC record holds it."""
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Type: {kind}", *headers])
    return head.encode() + b"\r\n\r\n" + payload


def record(block: bytes, number: int = 0, kind: str = "response", length: int | None = None, **fields: str) -> bytes:
    """A WARC record; `length` is what it claims, where that is not the truth."""
    given = {
        "WARC-Type": kind,
        "WARC-Record-ID": f"<urn:uuid:00000000-0000-0000-0000-{number:012d}>",
        "WARC-Date": DATE,
        "WARC-Target-URI": f"https://a.example/{number}",
        "Content-Type": "application/http; msgtype=response" if kind == "response" else "text/plain",
        **{name.replace("_", "-"): value for name, value in fields.items()},
        "Content-Length": str(len(block) if length is None else length),
    }
    lines = ["WARC/1.0", *(f"{name}: {value}" for name, value in given.items() if value)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + block + b"\r\n\r\n"


def page(number: int) -> bytes:
    """A sound record with an HTML page."""
    return record(http(f"<html><body><p>Page {number} é</p></body></html>".encode()), number)


def arc(pages: Mapping[str, bytes]) -> bytes:
    """An ARC file, version 1."""
    about = b"1 0 Test\nURL IP-address Archive-date Content-type Archive-length\n"
    parts = [b"filedesc://t.arc 0.0.0.0 20000101000000 text/plain %d\n%s\n" % (len(about), about)]
    for url, response in pages.items():
        parts.append(b"%s 10.0.0.1 20010203040506 text/html %d\n%s\n" % (url.encode(), len(response), response))
    return b"".join(parts)


def tar(members: Mapping[str, bytes | tarfile.TarInfo], mode: str = "w") -> bytes:
    """A tar archive of files, and of whatever else is given as a `TarInfo`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A link, device or fifo."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive of files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def gzip_zeros(mebibytes: int, fill: bytes = b"\0") -> bytes:
    """A gzip file of about a thousandth of what it unfolds to."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as handle:
        for _ in range(mebibytes):
            handle.write(fill * ((1 << 20) // len(fill)))
    return out.getvalue()


def mutations(sound: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Copies of `sound`, each with one to four bytes flipped, cut out, doubled, zeroed or cut off."""
    draw = random.Random(seed)
    for _ in range(count):
        data = bytearray(sound)
        for _ in range(draw.randint(1, 4)):
            place, width = draw.randrange(len(data)), draw.randint(1, 24)
            match draw.randrange(5):
                case 0:
                    data[place] ^= 1 << draw.randrange(8)
                case 1:
                    del data[place : place + width]
                case 2:
                    data[place:place] = data[place : place + width]
                case 3:
                    data[place : place + width] = bytes(len(data[place : place + width]))
                case _:
                    del data[max(place, len(data) - 200) :]
            if not data:
                data = bytearray(b"\n")
        yield bytes(data)


def parquet_of_bytes(path: Path, **columns: list[bytes]) -> Path:
    """A Parquet file with columns of strings, whatever bytes those are."""
    arrays = []
    for values in columns.values():
        ends = pa.array([0, *itertools.accumulate(map(len, values))], pa.int32())
        data = pa.py_buffer(b"".join(values))
        arrays.append(pa.Array.from_buffers(pa.string(), len(values), [None, ends.buffers()[1], data]))
    pq.write_table(pa.table(arrays, names=list(columns)), path)
    return path
