import unicodedata
from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.config.clean import CleanConfig
from llmctl.config.errors import InputError
from llmctl.data.clean import run
from llmctl.data.clean.html import HtmlToText
from llmctl.data.clean.unicode import ComposeUnicode, RepairEncoding
from llmctl.data.clean.whitespace import NormalizeWhitespace
from llmctl.data.tables import DOCUMENTS
from tests.data.clean.conftest import distinct_words
from tests.data.conftest import rows_of


@given(st.text())
def test_whitespace_and_unicode_are_idempotent(text: str) -> None:
    def once(given_text: str) -> str:
        return ComposeUnicode().rewrite(NormalizeWhitespace().rewrite(given_text))

    result = once(text)
    assert once(result) == result
    assert "\r" not in result
    assert "\n\n\n\n" not in result
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in result)
    assert all(line == line.rstrip() for line in result.split("\n"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\rc\x0bd\x0ce\u2028f\x85g", "a\nb\nc\nd\ne\nf\ng"),
        ("def f():\n\tif x:   \n        return  1\t\n", "def f():\n\tif x:\n        return  1"),
        ("a\n\n\n\n\n\nb", "a\n\n\nb"),
        ("\n \n  indented\n", "  indented"),
        ("\ufeffa\x00b\x1b[31mred\x1b[0m\x7f", "abred"),
        ("日本語 \u3000\nنص", "日本語\nنص"),
        ("👩\u200d👩\u200d👧", "👩\u200d👩\u200d👧"),  # joiners have a meaning
    ],
)
def test_whitespace(text: str, expected: str) -> None:
    assert NormalizeWhitespace().rewrite(text) == expected


def test_unicode_repair_and_composition() -> None:
    assert RepairEncoding().rewrite("schÃ¶n â€” trÃ¨s") == "schön — très"
    for untouched in ("schön", "&lt;b&gt; “x” ﬁ", 'a = "b"', "naïve Ã"):
        assert RepairEncoding().rewrite(untouched) == untouched
    assert ComposeUnicode().rewrite("e\u0301") == "é"
    assert ComposeUnicode().rewrite("ﬁ²") == "ﬁ²"  # compatibility forms stay


def test_html() -> None:
    page = (
        "<!DOCTYPE html><html><head><title>T</title><style>p{}</style></head><body><h1>Hé</h1><p>One &amp; two</p>"
        "<script>x()</script><ul><li>a</li><li>b</li></ul></body></html>"
    )
    rows = [
        {"id": "a", "text": page, "url": ""},
        {"id": "b.html", "text": "<p>fragment</p>", "url": ""},
        {"id": "c", "text": "<p>fragment</p>", "url": "http://x.org/p.html?q=1#f"},
        {"id": "d", "text": "extracted\n\ntext, a < b", "url": "http://x.org/p.html"},
        {"id": "e.md", "text": "<div>Markdown</div>\n\n# Kept", "url": ""},
        {"id": "f", "text": "  <!-- c -->\n<HTML><body>x</body></HTML>", "url": ""},
    ]
    rows = [{"source": "", "license": "", "lang": "", **row} for row in rows]
    batch = pa.RecordBatch.from_pylist(rows, schema=DOCUMENTS)
    texts = HtmlToText()(batch).column("text").to_pylist()
    assert "Hé" in texts[0]
    assert "One & two" in texts[0]
    assert "x()" not in texts[0]
    assert "p{}" not in texts[0]
    assert [text.strip() for text in texts[1:3]] == ["fragment", "fragment"]
    assert texts[3:5] == [rows[3]["text"], rows[4]["text"]]
    assert texts[5].strip() == "x"
    assert HtmlToText("never")(batch).equals(batch)
    assert "<" not in HtmlToText("always")(batch).column("text").to_pylist()[4]


GOOD = distinct_words(60)


def test_every_document_is_counted(documents: Callable, stage: Callable) -> None:
    given = documents([
        {"id": "good", "text": f"\ufeff{GOOD}  \r\n"}, {"id": "short", "text": "the of"},
        {"id": "blank", "text": "\x00 \n"},
        {"id": "page.html", "text": f"<html><body><p>{GOOD}</p></body></html>", "url": "u", "license": "MIT"},
    ])  # fmt: skip
    product, artifact = stage(run, CleanConfig(keep_rejected=True), given)
    assert {row["id"]: row["text"] for row in rows_of(artifact)} == {"good": GOOD, "page.html": GOOD}
    assert rows_of(artifact)[1] == {
        "id": "page.html", "text": GOOD, "source": "test", "url": "u", "license": "MIT", "lang": "", "time": "",
    }  # fmt: skip
    rejected = {row["id"]: (row["reason"], row["value"]) for row in rows_of(artifact, "rejected-")}
    assert rejected == {"short": ("too_few_words", 2.0), "blank": ("empty", 0.0)}
    totals = product.totals
    assert (totals["in"], totals["kept"], totals["dropped.too_few_words"], totals["dropped.empty"]) == (4, 2, 1, 1)
    assert totals["in"] == totals["kept"] + sum(n for key, n in totals.items() if key.startswith("dropped."))
    assert totals["bytes"] == 2 * len(GOOD)


def test_rejected_documents_are_written_on_request_only(documents: Callable, stage: Callable) -> None:
    given = documents([{"id": "good", "text": GOOD}, {"id": "short", "text": "the of"}])
    _, artifact = stage(run, CleanConfig(), given)
    assert [path.name for path in artifact.files()] == ["funnel.json", "part-00000.parquet"]


def test_nothing_kept_says_why(documents: Callable, stage: Callable) -> None:
    with pytest.raises(InputError, match="clean kept none of 2 documents") as caught:
        stage(run, CleanConfig(), documents([{"id": "a", "text": "short"}, {"id": "b", "text": "too"}]))
    assert "too_few_words 2" in caught.value.hint


def test_the_same_input_gives_the_same_bytes(documents: Callable, stage: Callable) -> None:
    given = documents([{"id": str(n), "text": GOOD + f" {n}"} for n in range(1200)])
    first, second = (stage(run, CleanConfig(), given)[1] for _ in range(2))
    assert [f.sha256 for f in first.manifest.files] == [f.sha256 for f in second.manifest.files]
