"""`llmctl collect URL …` as a user runs it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llmctl.config.collect import CollectConfig
from llmctl.config.errors import InputError
from llmctl.pipeline.execute import Call, plan
from llmctl.pipeline.stages import stage_named
from llmctl.store.store import Store
from tests.data.conftest import rows_of
from tests.data.fetch.servers import Canary, Site, Stored, status
from tests.data.fetch.test_object_stores import Bucket

DATE = "Wed, 01 Oct 2025 10:00:00 GMT"


def config(*urls: str, **fields: object) -> CollectConfig:
    return CollectConfig.model_validate({"sources": urls, "allow_private": True, **fields})


def test_documents_carry_where_and_when(site: Site, run_stage: Callable) -> None:
    site.pages["/d/rows.jsonl"] = Stored(b'{"text": "one"}\n{"text": "two", "url": "own"}\n', modified=DATE)
    site.pages["/page"] = status(200, b"<p>three</p>", Content_Type="text/html")
    outcome = run_stage("collect", config(f"{site.url}/d/rows.jsonl", f"{site.url}/page"))
    assert outcome.artifact.name == "rows"
    shown = [(row["id"], row["text"], row["source"], row["url"], row["time"]) for row in rows_of(outcome.artifact)]
    time = "2025-10-01T10:00:00+00:00"
    assert shown == [
        ("rows.jsonl:1", "one", "rows", f"{site.url}/d/rows.jsonl", time),
        ("rows.jsonl:2", "two", "rows", "own", time),
        ("page.html", "<p>three</p>", "page", f"{site.url}/page", ""),
    ]


def test_content_decides_whether_the_cache_has_it(site: Site, run_stage: Callable, store: Store) -> None:
    page = site.pages["/a.txt"] = Stored(b"text")
    settings = config(f"{site.url}/a.txt")
    first = run_stage("collect", settings)
    assert run_stage("collect", settings).cached
    assert page.sent == [200, 304]
    page.etag = '"new etag, old bytes"'
    assert run_stage("collect", settings).cached
    call = Call(stage_named("collect"), settings, {})
    assert plan(call, store)["cached"] is True
    page.content, page.etag = b"other text", '"two"'
    assert plan(call, store)["cached"] is False
    second = run_stage("collect", settings)
    assert not second.cached
    assert [row["text"] for row in rows_of(second.artifact)] == ["other text"]
    assert [row["text"] for row in rows_of(first.artifact)] == ["text"]
    assert store.names() == ["a"]  # downloads/ is no artifact


def test_what_is_no_document_is_said_so(site: Site, run_stage: Callable) -> None:
    site.pages["/a.png"] = status(200, b"\x89PNG", Content_Type="image/png")
    with pytest.raises(InputError, match=r"a\.png, which is not read"):
        run_stage("collect", config(f"{site.url}/a.png"))


def test_the_command_line(site: Site, canary: Canary, llmctl: Callable, tmp_path: Path) -> None:
    site.pages["/a.txt"] = Stored(b"some text")
    refused = llmctl("collect", f"http://127.0.0.1:{canary.port}/a.txt")
    assert refused.returncode == 3
    assert "127.0.0.1 is not a public address" in refused.stderr
    assert "--allow-private" in refused.stderr
    assert canary.connections == []
    done = llmctl("collect", f"{site.url}/a.txt", "--allow-private", "--quiet")
    assert (done.returncode, done.stdout) == (0, "a@v1\n")
    assert (tmp_path / "artifacts" / "downloads").is_dir()
    assert llmctl("verify", "--all").returncode == 0


def test_a_bucket_on_the_command_line(site: Site, llmctl: Callable) -> None:
    bucket = Bucket()
    site.rest = bucket.s3
    environment = {"AWS_ENDPOINT_URL": site.url, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    done = llmctl("collect", "s3://bucket/texts", "--allow-private", "--json", **environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["ok"] is True
    assert "Unclosed" not in done.stderr
    assert "Traceback" not in done.stderr
    half = llmctl("collect", "s3://bucket/texts", "--allow-private", **{**environment, "AWS_ACCESS_KEY_ID": "x"})
    assert half.returncode == 3
    assert "go together" in half.stderr
    shown = json.loads(llmctl("show", "texts", "--json").stdout)
    assert shown["totals"]["documents"] == 3
    assert shown["totals"]["skipped.unknown_format"] == 1
