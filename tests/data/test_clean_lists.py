"""URL lists and word lists."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmctl.config.clean import CleanConfig
from llmctl.config.clean_steps import HarmfulWordsConfig
from llmctl.config.errors import InputError
from llmctl.data.clean import run
from llmctl.data.clean.harmful_words import HarmfulWords, WordList
from llmctl.data.clean.urls import UrlList, UrlRules, host_of
from llmctl.store.artifact import FileInput
from tests.data.conftest import rows_of

LIST = """# comment
bad.org
=www.half.net
example.com/forum/
*casino*

HTTPS://Exact.Example/Page.html
"""


@pytest.fixture
def listed(tmp_path: Path) -> Callable[[str], FileInput]:
    def write(text: str) -> FileInput:
        path = tmp_path / f"list{len(list(tmp_path.iterdir()))}.txt"
        path.write_text(text, encoding="utf-8")
        return FileInput.of(path, "list")

    return write


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://bad.org/x", 2), ("https://a.b.BAD.org:8080/", 2), ("//www.bad.org", 2), ("http://notbad.org/", None),
        ("http://bad.org.evil.com/", None), ("http://u:p@bad.org/", 2), ("http://good.org/bad.org", None),
        ("http://bad.org./", 2), ("http:\\\\bad.org", None),
        ("http://www.half.net/", 3), ("http://half.net/", None), ("http://x.www.half.net/", None),
        ("https://example.com/forum/1", 4), ("https://www.example.com/forum/1", 4), ("https://example.com/", None),
        ("http://sub.example.com/forum/1", None), ("https://x.net/online-CASINO-2", 5),
        ("http://exact.example/page.html?q", 7), ("http://exact.example/other.html", None),
        ("", None), ("notes.txt", None), ("http://", None), ("http://[::1]/x", None),
    ],
)  # fmt: skip
def test_forms_of_entries(listed: Callable, url: str, line: int | None) -> None:
    assert UrlList.read(listed(LIST).path).match(url) == line


@pytest.mark.parametrize(("url", "host"), [
    ("http://A.b:80/c", "a.b"), ("https://x.org?q=@y.org", "x.org"), ("https://x.org#@y.org", "x.org"),
    ("http://a@b@c.org/", "c.org"), ("http://x.org\\@y.org/", "x.org"), ("http://[2001:DB8::1]:8/", "[2001:db8::1]"),
    ("ftp://x.org", ""), ("x.org", ""), ("mailto:a@b.c", ""),
])  # fmt: skip
def test_host_of(url: str, host: str) -> None:
    assert host_of(url) == host


def test_what_is_allowed_stays(listed: Callable) -> None:
    block, allow = UrlList.read(listed("bad.org\n").path), UrlList.read(listed("=fine.bad.org\n").path)
    rules = UrlRules(block, allow)
    assert (rules.judge("http://fine.bad.org/"), rules.judge("http://bad.org/"), rules.judge("")) == (None, 1.0, None)
    strict = UrlRules(None, allow, only_allowed=True)
    assert (strict.judge("http://fine.bad.org/"), strict.judge("http://other.org"), strict.judge("")) == (
        None,
        0.0,
        0.0,
    )


def test_urls_in_the_stage(documents: Callable, stage: Callable, listed: Callable) -> None:
    text = " ".join(f"the word of number{n}" for n in range(30))
    given = documents([{"id": "a", "text": text, "url": "http://x.bad.org/"}, {"id": "b", "text": text, "url": ""}])
    off = {"repetition": {"enabled": False}}
    product, artifact = stage(run, CleanConfig(keep_rejected=True, **off), given, blocklist=listed("#\nbad.org"))
    assert [row["id"] for row in rows_of(artifact)] == ["b"]
    assert [(row["id"], row["reason"], row["value"]) for row in rows_of(artifact, "rejected")] == [("a", "url", 2.0)]
    assert product.totals["dropped.url"] == 1
    with pytest.raises(InputError, match="needs an allow list"):
        stage(run, CleanConfig(urls={"only_allowed": True}), given)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("A bad day, a BAD\nday; badly bad", 3), ("very\nbad thing here", 1), ("very bad", 1), ("nothing", 0),
        ("前坏词后坏词", 2), ("Straße strasse", 2), ("bad" * 100_000, 0), ("", 0),
    ],
)  # fmt: skip
def test_words_and_phrases_are_counted(text: str, count: int) -> None:
    assert WordList(["bad", "very bad thing", "坏词", "STRASSE", "Bad", "  "]).count(text) == count


def test_soft_words_have_a_tolerance(listed: Callable) -> None:
    hard, soft = WordList(["worst"]), WordList(["bad"])
    rule = HarmfulWords(HarmfulWordsConfig(max_soft=2), hard, soft)
    assert rule.judge("bad bad") is None
    assert rule.judge("bad bad bad") == ("soft_words", 3.0)
    assert rule.judge("the worst bad bad bad") == ("hard_words", 1.0)
    assert HarmfulWords(HarmfulWordsConfig(), None, soft).judge("worst") is None


def test_words_in_the_stage(documents: Callable, stage: Callable, listed: Callable) -> None:
    texts = {name: " ".join(f"the word of {name} number{n}" for n in range(30)) for name in ("fine", "worst", "bad")}
    given = documents([{"id": name, "text": text} for name, text in texts.items()])
    roles: dict[str, Any] = {"hardwords": listed("worst\n"), "softwords": listed("bad\n")}
    product, artifact = stage(run, CleanConfig(repetition={"enabled": False}), given, **roles)
    assert [row["id"] for row in rows_of(artifact)] == ["fine"]
    assert (product.totals["dropped.hard_words"], product.totals["dropped.soft_words"]) == (1, 1)
