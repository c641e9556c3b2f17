import gzip
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from llmctl.config.collect import CollectConfig
from llmctl.config.errors import InputError, LlmctlError, UsageError
from llmctl.data.collect import run, sources
from llmctl.store.store import Store
from tests.data.conftest import job_of, rows_of

TREE = {
    "b.md": "# Título\n\nSome text.",
    "sub/a.txt": "Plain.",
    "sub/code.py": "print('héllo')\n",
    "page.html": "<html><body><p>Hi</p></body></html>",
    "rows.jsonl": '{"text": "one"}\n\n{"id": 7, "content": "two", "url": "u", "source": "s", "license": "MIT"}\n',
    "picture.png": "not text",
    ".hidden/x.txt": "hidden",
}


def config(*sources: Path | str, **fields: object) -> CollectConfig:
    return CollectConfig.model_validate({"sources": [str(source) for source in sources], **fields})


def fingerprint(settings: CollectConfig) -> dict[str, str]:
    return sources(settings)[1]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in TREE.items():
        path = tmp_path / "notes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "notes" / "z.txt.gz").write_bytes(gzip.compress(b"zipped"))
    (tmp_path / "notes" / "z.rst.zst").write_bytes(zstandard.compress(b"two ") + zstandard.compress(b"frames"))
    pq.write_table(pa.table({"text": ["p1", "p2"], "id": ["x", None]}), tmp_path / "notes" / "t.parquet")
    return tmp_path / "notes"


def test_a_folder_gives_every_known_file_in_order(tree: Path, stage: Callable) -> None:
    product, artifact = stage(run, config(tree, license="CC0-1.0"))
    rows = {row["id"]: row for row in rows_of(artifact)}
    assert list(rows) == [
        "b.md", "page.html", "rows.jsonl:1", "7", "sub/a.txt", "sub/code.py", "x", "t.parquet:2",
        "z.rst.zst", "z.txt.gz",
    ]  # fmt: skip
    assert rows["b.md"]["text"] == "# Título\n\nSome text."
    assert rows["z.rst.zst"]["text"] == "two frames"
    assert rows["sub/code.py"]["lang"] == "python"
    assert rows["7"] == {"id": "7", "text": "two", "source": "s", "url": "u", "license": "MIT", "lang": "", "time": ""}
    assert rows["sub/a.txt"]["source"] == "notes"
    assert rows["sub/a.txt"]["license"] == "CC0-1.0"
    assert product.totals["documents"] == 10
    assert product.totals["bytes"] == sum(len(row["text"].encode()) for row in rows.values())
    assert product.totals["skipped.unknown_format"] == 1
    assert product.license == ("CC0-1.0", "MIT")


def test_patterns_files_and_limit(tree: Path, stage: Callable) -> None:
    _, artifact = stage(run, config(tree / "**" / "*.txt"))
    assert [row["id"] for row in rows_of(artifact)] == ["sub/a.txt"]
    _, artifact = stage(run, config(tree / "sub" / "a.txt", tree / "sub", limit=2))
    assert [(row["id"], row["source"]) for row in rows_of(artifact)] == [("a.txt", "a"), ("a.txt~2", "sub")]


def test_a_store_in_the_folder_is_left_out(tree: Path, stage: Callable) -> None:
    before = fingerprint(config(tree))
    store = Store.open(tree / "work" / "llmctl-store", create=True)
    (store.root / "artifacts" / "made.txt").parent.mkdir(parents=True, exist_ok=True)
    (store.root / "artifacts" / "made.txt").write_text("made by llmctl")
    product, artifact = stage(run, config(tree))
    assert "work/llmctl-store/artifacts/made.txt" not in {row["id"] for row in rows_of(artifact)}
    assert product.totals["documents"] == 10
    assert product.totals["skipped.store"] == 1
    assert fingerprint(config(tree)) == before


def test_names_and_fingerprints_depend_on_content_not_on_place(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "notes"
    copy.parent.mkdir()
    os.rename(tree, copy)
    there = fingerprint(config(copy))
    os.rename(copy, tree)
    assert there == fingerprint(config(tree))
    assert list(there) == ["notes"]
    (tree / "b.md").write_text("changed")
    assert fingerprint(config(tree)) != there
    assert sources(config(tree))[0] == "notes"
    assert sources(config(tree / "rows.jsonl"))[0] == "rows"
    assert sources(config("python-docs"))[0] == "python-docs"
    assert len(fingerprint(config(tree, tree))) == 2


def test_left_out_documents_are_counted(tmp_path: Path, stage: Callable) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": ""}\n{"text": " \\n"}\n{"text": "0123456789"}\n{"text": "short"}\n')
    (tmp_path / "long.txt").write_text("x" * 11)
    product, artifact = stage(run, config(tmp_path, max_document_bytes=9))
    assert [row["text"] for row in rows_of(artifact)] == ["short"]
    assert product.totals["dropped.empty"] == 2
    assert product.totals["dropped.too_large"] == 2


def failing(path: Path) -> LlmctlError:
    """What collect says about `path`, by fingerprint or by run."""
    settings = config(path)
    with tempfile.TemporaryDirectory() as folder, pytest.raises(LlmctlError) as caught:
        fingerprint(settings)
        run(job_of(settings, Path(folder)))
    return caught.value


GOOD = "".join(json.dumps({"text": f"line {n} " * 50}) + "\n" for n in range(200)).encode()
BAD_FILES = {
    "missing.txt": (None, "does not exist"),
    "unknown.xyz": (b"text", "unknown format '.xyz'"),
    "torn.jsonl.gz": (gzip.compress(GOOD)[:-20], "truncated or damaged"),
    "torn.jsonl.zst": (zstandard.compress(GOOD)[:-20], "truncated or damaged"),
    "empty.txt.zst": (b"", "truncated or damaged"),
    "not.txt.gz": (b"plain text", "truncated or damaged"),
    "not.txt.zst": (b"plain text", "truncated or damaged"),
    "flipped.txt.gz": (gzip.compress(GOOD)[:-8] + b"\0" * 8, "truncated or damaged"),
    "not.parquet": (b"PAR1 nonsense PAR1", "truncated or not Parquet"),
    "bad.jsonl": (b'{"text": "a"}\n{"text": \n', "line 2: invalid JSON"),
    "list.jsonl": (b"[1, 2]\n", "line 1: a list, not an object"),
    "no_text.jsonl": (b'{"text": "a"}\n\n{"body": "b"}\n', "line 3: no text"),
    "null.jsonl": (b'{"text": null}\n', "line 1: no text"),
    "number.jsonl": (b'{"text": 5}\n', "line 1: text must be a string, got int"),
    "surrogate.jsonl": (b'{"text": "a\\ud800"}\n', "line 1: text holds a lone surrogate at character 1"),
    "latin.txt": ("déjà".encode("latin-1"), "invalid UTF-8 at byte 1"),
    "latin.jsonl": (b'{"text": "a"}\n{"text": "\xe9"}\n', "invalid UTF-8 at byte 24"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_each_bad_file_gives_one_clear_line(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    error = failing(path)
    assert isinstance(error, InputError)
    assert error.exit_code == 3
    assert str(path) in error.what
    assert message in error.what
    assert error.hint
    assert "\n" not in error.one_line


def test_a_truncated_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "torn.parquet"
    pq.write_table(pa.table({"text": ["x" * 1000] * 100}), path)
    path.write_bytes(path.read_bytes()[:-30])
    assert "torn.parquet is truncated or not Parquet" in failing(path).what


def test_parquet_without_text_or_with_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["x"]}), path)
    assert failing(path).what == f"{path} has no column 'text'"
    assert failing(path).hint == "it has: body"
    pq.write_table(pa.table({"text": [1]}), path)
    assert failing(path).what == f"{path} row 1: text must be a string, got int"


def test_no_source_no_match_and_nothing_found(tmp_path: Path, stage: Callable) -> None:
    with pytest.raises(UsageError):
        fingerprint(config())
    with pytest.raises(InputError, match="no readable file matches"):
        fingerprint(config(tmp_path / "*.txt"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="no document found in") as caught:
        stage(run, config(tmp_path / "empty"))
    assert caught.value.hint == "left out: 1 unknown_format"


def test_a_folder_without_permission() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, locked = Path(name), Path(name, "locked")
        locked.mkdir()
        (locked / "a.txt").write_text("text")
        folder.chmod(0o755)
        locked.chmod(0o000)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may read everything
        try:
            for path in (locked, folder):
                with pytest.raises(InputError, match=f"no permission for {locked}"):
                    fingerprint(config(path))
        finally:
            os.seteuid(user)
            locked.chmod(0o700)
