"""Rows of CSV, JSON Lines and Parquet, and languages of code."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmctl.config.collect import CollectConfig
from llmctl.config.errors import InputError
from llmctl.data.collect import run
from llmctl.data.collect.formats import format_of, language_of, language_of_script, stem
from tests.data.conftest import rows_of


def test_csv_and_tsv(tmp_path: Path, stage: Callable) -> None:
    (tmp_path / "a.csv").write_text('\ufeffid,text,date,other\r\nx,"one, ""two""\nlines",2024-01-02,9\r\n,three,,\r\n')
    (tmp_path / "b.tsv").write_text("content\tlang\nfour\tde\n")
    _, artifact = stage(run, CollectConfig(sources=(str(tmp_path),)))
    assert [(row["id"], row["text"], row["time"], row["lang"]) for row in rows_of(artifact)] == [
        ("x", 'one, "two"\nlines', "2024-01-02", ""), ("a.csv:2", "three", "", ""), ("b.tsv:1", "four", "", "de"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,body\n1,x\n", "has no column 'text'"),
        (b"", "has no column 'text'"),
        (b"text,id\nonly\n", "row 1 has 1 cells, not 2"),
        (b'text\n"a"b"\n', "line 2: ',' expected after '\"'"),
        (b"text\n\xff\n", "invalid UTF-8 at byte 5"),
    ],
)
def test_a_bad_csv_is_one_clear_line(tmp_path: Path, stage: Callable, content: bytes, message: str) -> None:
    (tmp_path / "bad.csv").write_bytes(content)
    with pytest.raises(InputError) as caught:
        stage(run, CollectConfig(sources=(str(tmp_path / "bad.csv"),)))
    assert message in caught.value.what
    assert caught.value.hint


def test_parquet_columns(tmp_path: Path, stage: Callable) -> None:
    table = pa.table({
        "text": pa.array(["a", "a", None]),
        "date": [dt.datetime(2024, 1, 2, 3, tzinfo=dt.UTC), None, None],
        "score": [1.0, 2.0, 3.0],
        "language": ["en", None, "x" * 200],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "t.parquet")
    (tmp_path / "z.txt").write_text("z")
    product, artifact = stage(run, CollectConfig(sources=(str(tmp_path),)))
    assert [(row["id"], row["time"], row["lang"]) for row in rows_of(artifact)] == [
        ("t.parquet:1", "2024-01-02T03:00:00+00:00", "en"), ("t.parquet:2", "", ""), ("z.txt", "", ""),
    ]  # fmt: skip
    assert product.totals["dropped.damaged"] == 1


def test_a_line_that_is_too_long_is_passed_over(tmp_path: Path, stage: Callable) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "' + "b" * 1000 + '"}\n\n{"text": "c"}')
    product, artifact = stage(run, CollectConfig(sources=(str(tmp_path / "a.jsonl"),), max_document_bytes=100))
    assert [(row["id"], row["text"]) for row in rows_of(artifact)] == [("a.jsonl:1", "a"), ("a.jsonl:4", "c")]
    assert product.totals["dropped.too_large"] == 1


@pytest.mark.parametrize(
    ("name", "kind", "language"),
    [
        ("a/b.PY", "text", "python"), ("Makefile", "text", "make"), ("x.tar.gz", "tar", ""), ("x.TGZ", "tar", ""),
        ("c.warc.wet.gz", "warc", ""), ("t.parquet.gz", "", ""), ("t.zip.xz", "", ""), ("tool", "script", ""),
        ("tool.gz", "", ""), ("a.xyz", "", ""), ("d.xml.bz2", "mediawiki", ""), ("m.ts", "text", "typescript"),
    ],
)  # fmt: skip
def test_formats_by_name(name: str, kind: str, language: str) -> None:
    assert (format_of(name), language_of(name)) == (kind, language)


@pytest.mark.parametrize(
    ("line", "language"),
    [
        (b"#!/bin/sh\n", "shell"), (b"#!/usr/bin/env python3.11 -u\n", "python"), (b"#! /usr/bin/perl -w", "perl"),
        (b"#!/usr/bin/env -S A=b node\n", "javascript"), (b"#!/opt/unknown\n", ""), (b"no", ""), (b"", ""),
    ],
)  # fmt: skip
def test_languages_by_shebang(line: bytes, language: str) -> None:
    assert language_of_script(line) == language


def test_stems() -> None:
    names = ["crawl.jsonl.gz", "c.warc.gz", "x.tgz", "v1.2.tar.xz", "a.b", "enwiki.xml.bz2"]
    assert [stem(name) for name in names] == ["crawl", "c", "x", "v1.2", "a.b", "enwiki"]
