"""Archives and compression: members as files of a folder, nothing followed, nothing unfolded without bound."""

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from llmctl.config.collect import CollectConfig
from llmctl.config.errors import InputError
from llmctl.data.collect import run
from tests.data.broken import gzip_zeros, http, record, special, tar, zipped
from tests.data.conftest import rows_of

COMPRESS = {".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def collect(stage: Callable, path: Path, **settings: object):
    return stage(run, CollectConfig.model_validate({"sources": [str(path)], **settings}))


def left_out(product) -> dict[str, int]:
    return {
        key: value
        for key, value in product.totals.items()
        if key.startswith(("dropped.", "skipped.")) and not key.endswith(".hidden")
    }


@pytest.mark.parametrize("ending", COMPRESS)
def test_two_streams_in_one_file_and_a_cut_one(tmp_path: Path, stage: Callable, ending: str) -> None:
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(COMPRESS[ending](b"one ") + COMPRESS[ending](b"two"))
    assert [row["text"] for row in rows_of(collect(stage, path)[1])] == ["one two"]
    path.write_bytes(COMPRESS[ending](os.urandom(300_000).hex().encode())[:-9])
    with pytest.raises(InputError, match="truncated or damaged"):
        collect(stage, path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="truncated or damaged"):
        collect(stage, path)


@pytest.mark.parametrize("ending", ["", *COMPRESS])
def test_tar_members_are_files(tmp_path: Path, stage: Callable, ending: str) -> None:
    table = io.BytesIO()
    pq.write_table(pa.table({"text": ["row"]}), table)
    content = tar({
        "docs/a.md": b"# A", "docs/b.jsonl.gz": gzip.compress(b'{"text": "line"}\n'), "run.py": b"print()",
        "t.parquet": table.getvalue(), "picture.png": b"\x89PNG", "tool": b"#!/usr/bin/env python3\nprint()\n",
    })  # fmt: skip
    path = tmp_path / f"data.tar{ending}"
    path.write_bytes(COMPRESS.get(ending, bytes)(content))
    product, artifact = collect(stage, path)
    rows = {row["id"].removeprefix(path.name + "/"): row for row in rows_of(artifact)}
    assert {name: row["text"] for name, row in rows.items()} == {
        "docs/a.md": "# A", "docs/b.jsonl.gz:1": "line", "run.py": "print()", "t.parquet:1": "row",
        "tool": "#!/usr/bin/env python3\nprint()\n",
    }  # fmt: skip
    assert rows["tool"]["lang"] == rows["run.py"]["lang"] == "python"
    assert left_out(product) == {"skipped.unknown_format": 1}


def test_hostile_names_stay_names(tmp_path: Path, stage: Callable) -> None:
    long = "x" * 251 + ".txt"
    names = [
        "../../up.txt",
        "/etc/passwd.txt",
        "C:\\win\\w.txt",
        "A.txt",
        "a.txt",
        "a.txt",
        long,
        "././/",
        ".ssh/k.txt",
    ]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"%d" % number))
        for info in (
            special("l.txt", tarfile.SYMTYPE, "/etc/passwd"), special("h.txt", tarfile.LNKTYPE, "A.txt"),
            special("d.txt", tarfile.CHRTYPE), special("f.txt", tarfile.FIFOTYPE),
        ):  # fmt: skip
            archive.addfile(info)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "x.tar").write_bytes(out.getvalue())
    product, artifact = collect(stage, folder / "x.tar")
    assert {row["id"]: row["text"] for row in rows_of(artifact)} == {
        "x.tar/up.txt": "0", "x.tar/etc/passwd.txt": "1", "x.tar/win/w.txt": "2", "x.tar/A.txt": "3",
        "x.tar/a.txt": "4", "x.tar/a.txt~2": "5", f"x.tar/{long}": "6",
    }  # fmt: skip
    assert product.totals["skipped.link"] == 2
    assert product.totals["skipped.special"] == 2
    assert product.totals["skipped.hidden"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "run1"]
    assert [path.name for path in folder.iterdir()] == ["x.tar"]


def test_zip_members(tmp_path: Path, stage: Callable) -> None:
    data = io.BytesIO(
        zipped({"a.txt": b"one", "../b.txt": b"two", "in.tar.gz": gzip.compress(tar({"c.txt": b"three"}))})
    )
    with zipfile.ZipFile(data, "a") as archive:
        link = zipfile.ZipInfo("link.txt")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("odd.txt", b"four" * 9, zipfile.ZIP_LZMA)
        archive.writestr("sealed.txt", b"five")
        archive.writestr("hurt.txt", b"six six six six six", zipfile.ZIP_STORED)
    content = bytearray(data.getvalue().replace(b"six six six six six", b"six six SIX six six"))
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"sealed.txt"))
    content[entry + 8] |= 1
    path = tmp_path / "d.zip"
    path.write_bytes(content)
    product, artifact = collect(stage, path)
    assert {row["id"]: row["text"] for row in rows_of(artifact)} == {
        "d.zip/a.txt": "one", "d.zip/b.txt": "two", "d.zip/in.tar.gz/c.txt": "three",
    }  # fmt: skip
    assert left_out(product) == {
        "dropped.damaged": 1, "dropped.encrypted": 1, "dropped.unknown_compression": 1, "skipped.link": 1,
    }  # fmt: skip


def test_archives_within_archives_end_at_the_depth(tmp_path: Path, stage: Callable) -> None:
    content = b"deep"
    name = "0.txt"
    for level in range(1, 4):
        content, name = tar({name: content, f"beside{level}.txt": b"beside"}), f"{level}.tar"
    (tmp_path / "3.tar").write_bytes(content)
    product, artifact = collect(stage, tmp_path / "3.tar")
    assert [row["id"] for row in rows_of(artifact)] == ["3.tar/2.tar/beside2.txt", "3.tar/beside3.txt"]
    assert left_out(product) == {"dropped.nested_archive": 1}
    _, artifact = collect(stage, tmp_path / "3.tar", max_archive_depth=3)
    assert "3.tar/2.tar/1.tar/0.txt" in {row["id"] for row in rows_of(artifact)}


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz", "t.zip"])
def test_a_damaged_archive(tmp_path: Path, stage: Callable, name: str) -> None:
    members = {f"{number}.txt": os.urandom(40_000).hex().encode() for number in range(3)}
    content = {"t.tar": tar(members), "t.tar.gz": gzip.compress(tar(members)), "t.zip": zipped(members)}[name]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content[: len(content) // 2])
    (tmp_path / "in" / "z.txt").write_text("beside")
    with pytest.raises(InputError, match="truncated or damaged"):
        collect(stage, tmp_path / "in" / name)
    product, artifact = collect(stage, tmp_path / "in")
    assert rows_of(artifact)[-1]["text"] == "beside"
    assert product.totals["dropped.damaged"] >= 1
    assert product.totals["in"] == product.totals["documents"] + product.totals["dropped.damaged"]


def test_damaged_files_of_a_folder_are_counted_and_told(tmp_path: Path, stage: Callable) -> None:
    (tmp_path / "latin.txt").write_bytes("déjà".encode("latin-1"))
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\nno json\n{"text": 5}\n{"text": "b\\ud800"}\n{"text": "c"}\n')
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    product, artifact = collect(stage, tmp_path)
    assert [row["text"] for row in rows_of(artifact)] == ["a", "c"]
    assert left_out(product) == {"dropped.damaged": 4, "dropped.encoding": 1}
    assert product.totals["in"] == 7
    _, artifact = collect(stage, tmp_path, encoding="detect")
    assert rows_of(artifact)[0]["text"] == "déjà"


BOMBS = {
    "line.jsonl.gz": lambda: gzip_zeros(300, b"a"),
    "blank.jsonl.gz": lambda: gzip_zeros(20, b"\n"),
    "cells.csv.gz": lambda: gzip.compress(b"text\n") + gzip_zeros(300, b"a"),
    "one.txt.zst": lambda: zstd_zeros(1000),
    "one.txt.xz": lambda: lzma.compress(bytes(300 << 20)),
    "page.warc.gz": lambda: gzip_zeros(300, b"x"),
    "inner.warc": lambda: record(http(gzip_zeros(300), "Content-Encoding: gzip")),
    "nested.tar.gz": lambda: gzip.compress(tar({"b.tar.gz": gzip.compress(tar({"z.txt.gz": gzip_zeros(300)}))})),
    "long.tar.gz": lambda: gzip.compress(tar({"b.txt": bytes(300 << 20)})),
    "many.zip": lambda: zipped({f"{n}.txt": bytes(15 << 20) for n in range(24)}),
    "pax.tar": lambda: special_header(4 << 30),
    "dump.xml.gz": lambda: gzip.compress(b'<mediawiki><page a="') + gzip_zeros(300, b"a"),
    "laughs.xml": lambda: b'<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa">' + b"".join(
        b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9)) + b"]><mediawiki>&j;</mediawiki>",
}  # fmt: skip


def zstd_zeros(mebibytes: int) -> bytes:
    compressor = zstandard.ZstdCompressor().compressobj()
    parts = [compressor.compress(bytes(1 << 20)) for _ in range(mebibytes)]
    return b"".join(parts) + compressor.flush()


def special_header(size: int) -> bytes:
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, size
    return info.tobuf() + bytes(1 << 20)


MEASURE = """
import json, re, sys
from pathlib import Path
from llmctl.config.collect import CollectConfig
from llmctl.config.errors import InputError
from llmctl.data.collect import run
from tests.data.conftest import job_of

folder = Path(sys.argv[1])
product = run(job_of(CollectConfig(sources=(sys.argv[2],), workers=1), folder))
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10
print(json.dumps({"peak_mib": peak, **product.totals}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_bombs_are_counted_within_256_mib(tmp_path: Path) -> None:
    """All in one folder, in one process: each is counted, the file beside them is kept, and memory is bounded."""
    folder = tmp_path / "bombs"
    folder.mkdir()
    for name, make in BOMBS.items():
        (folder / name).write_bytes(make())
    (folder / "zz.txt").write_text("beside")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), str(folder)], capture_output=True, text=True, check=True
    )
    totals = json.loads(done.stdout.splitlines()[-1])
    assert totals["documents"] == 1
    assert totals["peak_mib"] <= 256
    dropped = {key: value for key, value in totals.items() if key.startswith("dropped.")}
    assert sum(dropped.values()) + 1 == totals["in"]
    refused = {"pax.tar", "dump.xml.gz", "laughs.xml"}  # a header of 4 GiB, a tag without end, entities
    assert dropped["dropped.damaged"] == len(refused)
    assert dropped["dropped.decompression_bomb"] + dropped["dropped.too_large"] >= len(BOMBS) - len(refused)


def test_a_parquet_bomb(tmp_path: Path, stage: Callable) -> None:
    (tmp_path / "in").mkdir()
    table = pa.table({"text": ["a" * 1_000_000] * 200})
    pq.write_table(table, tmp_path / "in" / "bomb.parquet", use_dictionary=False, compression="zstd")
    pq.write_table(pa.table({"text": ["fine"] * 3}), tmp_path / "in" / "fine.parquet")
    product, artifact = collect(stage, tmp_path / "in")
    assert [row["id"] for row in rows_of(artifact)] == [f"fine.parquet:{number}" for number in (1, 2, 3)]
    assert left_out(product) == {"dropped.decompression_bomb": 1}
