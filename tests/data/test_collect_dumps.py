"""MediaWiki dumps and git repositories."""

import bz2
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.config.collect import CollectConfig
from llmctl.config.errors import InputError
from llmctl.data.collect import run, sources
from llmctl.data.collect.spdx import is_allowed, license_of
from llmctl.data.collect.wikitext import plain_text
from tests.data.conftest import rows_of

SITE = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
<siteinfo><sitename>Wikipedia</sitename><dbname>dewiki</dbname><base>{base}</base>
<namespaces><namespace key="0" /><namespace key="6">Datei</namespace><namespace key="1">Diskussion</namespace>
</namespaces></siteinfo>"""
PAGE = """<page><title>{title}</title><ns>{ns}</ns><id>{id}</id>{extra}<revision><id>9</id>
<timestamp>2024-01-02T03:04:05Z</timestamp><model>{model}</model><text bytes="3">{text}</text></revision></page>"""


def dump(*pages: str, base: str = "https://de.wikipedia.org/wiki/Hauptseite") -> bytes:
    return (SITE.format(base=base) + "".join(pages) + "</mediawiki>").encode()


def page(title: str, text: str, number: int = 1, ns: int = 0, extra: str = "", model: str = "wikitext") -> str:
    return PAGE.format(title=title, ns=ns, id=number, extra=extra, text=text, model=model)


def test_a_dump(tmp_path: Path, stage: Callable) -> None:
    path = tmp_path / "dewiki.xml.bz2"
    path.write_bytes(bz2.compress(dump(
        page("Käse &amp; Brot", "'''Käse''' ist [[Milch|aus Milch]].[[Datei:k.jpg|mini|Ein [[Bild]]]]", 11),
        page("Kaese", "#WEITERLEITUNG [[Käse]]", 12, extra='<redirect title="Käse" />'),
        page("Diskussion:Käse", "Hm.", 13, ns=1),
        page("Modul:x", "return {}", 14, model="Scribunto"),
        page("Leer", "{{Vorlage}}", 15),
        page("Groß", "x" * 1000, 16),
    )))  # fmt: skip
    product, artifact = stage(run, CollectConfig(sources=(str(path),), max_document_bytes=100))
    assert rows_of(artifact) == [{
        "id": "dewiki.xml.bz2:11", "text": "Käse & Brot\n\nKäse ist aus Milch.", "source": "dewiki",
        "url": "https://de.wikipedia.org/wiki/K%C3%A4se_%26_Brot", "license": "CC-BY-SA-4.0", "lang": "",
        "time": "2024-01-02T03:04:05Z",
    }]  # fmt: skip
    dropped = {key: value for key, value in product.totals.items() if key.startswith("dropped.")}
    assert dropped == {f"dropped.{why}": 1 for why in ("redirect", "namespace", "content_type", "empty", "too_large")}
    assert product.totals["in"] == 6
    _, artifact = stage(run, CollectConfig(sources=(str(path),), wiki_namespaces="1"))
    assert [row["id"] for row in rows_of(artifact)] == ["dewiki.xml.bz2:13"]


def test_a_wiki_of_someone_else_has_no_licence_and_other_xml_is_refused(tmp_path: Path, stage: Callable) -> None:
    (tmp_path / "w.xml").write_bytes(dump(page("T", "Text"), base="https://wikipedia.org.evil.example/wiki/M"))
    _, artifact = stage(run, CollectConfig(sources=(str(tmp_path / "w.xml"),)))
    assert rows_of(artifact)[0]["license"] == ""
    (tmp_path / "feed.xml").write_text("<rss><channel/></rss>")
    with pytest.raises(InputError, match="no MediaWiki dump: its root is <rss>"):
        stage(run, CollectConfig(sources=(str(tmp_path / "feed.xml"),)))
    product, _ = stage(run, CollectConfig(sources=(str(tmp_path),)))
    assert product.totals["dropped.unknown_xml"] == 1
    (tmp_path / "w.xml").write_bytes(dump(page("T", "Text"), page("U", "More"))[:-40])
    with pytest.raises(InputError, match=r"w\.xml line \d+: no element found"):
        stage(run, CollectConfig(sources=(str(tmp_path / "w.xml"),)))


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("''a'' '''b''' '''''c'''''", "a b c"),
        ("[[A]], [[B|b]], [[:C]] and [[D#x|d]]s", "A, b, C and ds"),
        ("[http://x.y label] [https://x.y] http://z", "label  http://z"),
        ("a{{t|{{u|[[v]]}}}}b", "ab"),
        ("{|\n|a\n{|\n|b\n|}\n|}\nafter", "after"),
        ("x<ref name=a>[[y]]</ref><ref name=a /> z<!-- [[ -->.", "x z."),
        ("[[File:a.jpg|thumb|A [[link]] here]]end [[Category:Q]]", "end"),
        ("== One ==\ntext\n== Two ==\n{{list}}\n=== Three ===\n== Four ==\nend", "One\ntext\n\nFour\nend"),
        ("* a\n** b\n# c\n: d\n; e", "- a\n- b\n- c\nd\ne"),
        ("a {{unclosed [[b]] c", "a {{unclosed b c"),
        ("a }} b ]] c", "a }} b ]] c"),
        ("1 &lt; 2 &amp; __NOTOC__<br>next<span class=x>in</span>", "1 < 2 &\nnextin"),
        ("A ({{lang|en|b}}) c", "A c"),
        ("<nowiki>''x''</nowiki>", "x"),
    ],
)
def test_wikitext(markup: str, text: str) -> None:
    assert plain_text(markup) == text


@settings(max_examples=300)
@given(st.lists(st.sampled_from(["{{", "}}", "[[", "]]", "\n{|", "\n|}", "|", "=", "'''", "<ref>", "</ref>", "<!--",
                                 "-->", "[//a", "a b", "\n", "*", "&#xD800;", "(", ")"]), max_size=60))  # fmt: skip
def test_any_markup_gives_valid_text(parts: list[str]) -> None:
    plain_text("".join(parts)).encode()


@pytest.mark.parametrize("part", ["{{", "[[", "[[{{", "[//a", "<!--", "<a ", "\n{|", "(", "=", "'''", "{{[[\n{|", "&"])
@pytest.mark.timeout(60)
def test_a_megabyte_of_anything_takes_no_square_of_time(part: str) -> None:
    assert len(plain_text(part * ((1 << 20) // len(part)) + "-->")) <= 2 << 20


GIT = ["git", "-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]


def git(folder: Path, *command: str) -> str:
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/nonexistent",
                   "GIT_COMMITTER_DATE": "2024-03-04T05:06:07+0200"}  # fmt: skip
    done = subprocess.run([*GIT, *command], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "a.py").write_text("print('a')\n")
    (folder / "src" / "b.c").write_text("/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */\nint b;\n")
    (folder / "README.md").write_text("# Project\n")
    (folder / "build").write_text("#!/bin/sh\necho\n")
    (folder / "notes.bin").write_bytes(b"\0\1")
    (folder / "latin.py").write_bytes(b"# caf\xe9\n")
    (folder / "big.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (folder / "LICENSE-MIT").write_text(
        "Permission is hereby granted, free of charge, to any person\n\nThe above copyright\nnotice and this permission"
        " notice shall be included"
    )
    (folder / "LICENSE-APACHE").write_text("  Apache License\n  Version 2.0, January 2004\n")
    (folder / "link.py").symlink_to("/etc/passwd")
    git(folder, "init", "-q")
    git(folder, "remote", "add", "origin", "https://user:secret@git.example.org/o/project.git")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    (folder / "untracked.py").write_text("never")
    (folder / "src" / "a.py").write_text("changed, not committed")
    return folder


def test_a_repository_is_what_head_tracks(repository: Path, tmp_path: Path, stage: Callable) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    product, artifact = stage(run, CollectConfig(sources=(str(repository),)))
    rows = {row["id"]: row for row in rows_of(artifact)}
    assert list(rows) == ["README.md", "build", "src/a.py", "src/b.c"]
    assert rows["src/a.py"] == {
        "id": "src/a.py", "text": "print('a')\n", "source": "project", "lang": "python",
        "url": f"https://git.example.org/o/project@{commit}#src/a.py", "license": "Apache-2.0 OR MIT",
        "time": "2024-03-04T03:06:07Z",
    }  # fmt: skip
    assert rows["src/b.c"]["license"] == "GPL-2.0-only WITH Linux-syscall-note"
    assert rows["build"]["lang"] == "shell"
    assert product.totals["dropped.encoding"] == product.totals["dropped.lfs_pointer"] == 1
    assert product.totals["skipped.link"] == 1
    git(tmp_path, "clone", "-q", "--bare", str(repository), "project.git")
    bare = CollectConfig(sources=(str(tmp_path / "project.git"),))
    assert sources(bare) == sources(CollectConfig(sources=(str(repository),)))
    assert [row["id"] for row in rows_of(stage(run, bare)[1])] == list(rows)


def test_licences_decide_what_is_kept(repository: Path, stage: Callable) -> None:
    settings = {"sources": [str(repository)], "license_allow": "mit, BSD-3-Clause"}
    product, artifact = stage(run, CollectConfig.model_validate(settings))
    assert [row["id"] for row in rows_of(artifact)] == ["README.md", "build", "src/a.py"]
    assert product.totals["dropped.license"] == 1


def test_a_repository_runs_no_program(repository: Path, tmp_path: Path, stage: Callable) -> None:
    """Its own configuration names programs and a transport that runs one; objects that are missing stay missing."""
    canary = tmp_path / "canary"
    for key in ("core.fsmonitor", "core.pager", "core.sshCommand", "diff.external", "filter.x.smudge", "gpg.program"):
        git(repository, "config", key, f"touch {canary}")
    git(repository, "config", "remote.origin.promisor", "true")
    git(repository, "config", "remote.origin.url", f"ext::sh -c touch% {canary}")
    git(repository, "config", "protocol.ext.allow", "always")
    git(repository, "config", "core.repositoryformatversion", "1")
    git(repository, "config", "extensions.partialClone", "origin")
    oid = git(repository, "rev-parse", "HEAD:src/b.c")
    (repository / ".git" / "objects" / oid[:2] / oid[2:]).unlink()
    product, artifact = stage(run, CollectConfig(sources=(str(repository),)))
    assert "src/b.c" not in {row["id"] for row in rows_of(artifact)}
    assert product.totals["dropped.damaged"] == 1
    assert not canary.exists()


def test_a_repository_without_a_commit(tmp_path: Path, stage: Callable) -> None:
    git(tmp_path, "init", "-q", "empty")
    with pytest.raises(InputError, match="git rev-parse says"):
        stage(run, CollectConfig(sources=(str(tmp_path / "empty"),)))


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True), ("mit", True), ("MIT OR GPL-3.0-only", True), ("MIT AND GPL-3.0-only", False),
        ("MIT AND Apache-2.0", True), ("", False), ("(MIT OR GPL-3.0-only)", False), ("(MIT AND Apache-2.0)", True),
        ("Apache-2.0 WITH LLVM-exception", True), ("GPL-3.0-only", False),
    ],
)  # fmt: skip
def test_expressions_of_licences(expression: str, allowed: bool) -> None:
    assert is_allowed(expression, frozenset({"mit", "apache-2.0"})) is allowed


def test_licence_texts_of_this_machine() -> None:
    common = Path("/usr/share/common-licenses")
    expected = {"Apache-2.0": "Apache-2.0", "GPL-2": "GPL-2.0-only", "GPL-3": "GPL-3.0-only", "LGPL-3": "LGPL-3.0-only",
                "LGPL-2.1": "LGPL-2.1-only", "MPL-2.0": "MPL-2.0", "BSD": "BSD-3-Clause"}  # fmt: skip
    there = {name: common / name for name in expected if (common / name).is_file()}
    if not there:
        pytest.skip("no Debian here")
    found = {name: license_of(path.read_text(errors="replace")) for name, path in there.items()}
    assert found == {name: expected[name] for name in there}
