import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.config.clean import CleanConfig, QualityConfig, RepetitionConfig
from llmctl.config.errors import InputError
from llmctl.data.clean import run
from llmctl.data.clean.gopher_quality import GopherQuality
from llmctl.data.clean.gopher_repetition import (
    GopherRepetition,
    Ngrams,
    repeated_parts,
)
from llmctl.data.clean.html import HtmlToText
from llmctl.data.clean.kernel import NotEmpty, split_by_verdict
from llmctl.data.clean.unicode import ComposeUnicode, RepairEncoding
from llmctl.data.clean.whitespace import NormalizeWhitespace
from llmctl.data.tables import DOCUMENTS
from tests.data.conftest import rows_of

PROSE = "the cat and the dog have to be with that kind of person "  # 13 words, all eight stop words


def quality(text: str, **fields: Any) -> str | None:
    verdict = GopherQuality(QualityConfig(**fields)).judge(text)
    return verdict and verdict.reason


def distinct_words(count: int, stem: str = "word") -> str:
    """`count` different words, two of them stop words."""
    letters = "abcdefghij"
    return " ".join(["the", "of", *(stem + "".join(letters[int(d)] for d in str(n)) for n in range(count - 2))])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (distinct_words(50), None),
        (distinct_words(49), "too_few_words"),
        (distinct_words(49) + " -- ==", "too_few_words"),  # symbols are no words
        ("the and " + "ab " * 98, "words_too_short"),
        ("the and " + "abc " * 98, None),  # mean 3.0
        ("the of " + "abcdefghij " * 98, None),  # mean 9.85
        ("the of " + "abcdefghijk " * 98, "words_too_long"),
        (distinct_words(90) + " #" * 10, None),  # 10 of 100
        (distinct_words(89) + " #" * 11, "too_many_hashes"),
        (distinct_words(90) + " ..." * 5 + " …" * 4 + " …end", None),
        (distinct_words(89) + " ..." * 6 + " …" * 5, "too_many_ellipses"),
        ("\n".join(["- the of word here now"] * 9 + ["a last line of words"]), None),
        ("\n".join(["- the of word here now"] * 19 + ["a line"]), "too_many_bullet_lines"),
        ("\n".join(["• the of word here now"] * 10), "too_many_bullet_lines"),
        ("\n".join(["the of words on many lines of text here"] * 7 + ["more..."] * 3), None),
        ("\n".join(["the of words on many lines of text here"] * 13 + ["more…"] * 7), "too_many_ellipsis_lines"),
        (distinct_words(80) + " 1234" * 20, None),
        (distinct_words(79) + " 1234" * 21, "too_few_alphabetic_words"),
        ("to " + "word " * 60, "too_few_stop_words"),
        ("to (have) " + "word " * 60, None),
        ("to To " + "word " * 60, "too_few_stop_words"),  # one distinct word; case counts
    ],
)
def test_quality_rules_at_their_thresholds(text: str, reason: str | None) -> None:
    assert quality(text) == reason


def test_most_words() -> None:
    assert quality("the of " + "word " * 98, max_words=100) is None
    assert quality("the of " + "word " * 99, max_words=100) == "too_many_words"
    assert QualityConfig().max_words == 100_000


def test_each_rule_can_be_switched_off() -> None:
    off = dict.fromkeys(set(QualityConfig.model_fields) - {"enabled"})
    assert quality("# ... #", **off) is None
    assert quality("", **off) is None


def test_the_value_that_broke_the_rule_is_told() -> None:
    verdict = GopherQuality(QualityConfig()).judge(distinct_words(90) + " #" * 30)
    assert verdict == ("too_many_hashes", 30 / 120)


def repetition(text: str, **fields: Any) -> str | None:
    verdict = GopherRepetition(RepetitionConfig(**fields)).judge(text)
    return verdict and verdict.reason


NO_NGRAMS = {"max_top_ngram_characters": None, "max_duplicate_ngram_characters": None}
NO_CHARACTERS = {"max_duplicate_paragraph_characters": None, "max_duplicate_line_characters": None, **NO_NGRAMS}


@pytest.mark.parametrize(("separator", "unit"), [("\n\n", "paragraph"), ("\n\n\n", "paragraph"), ("\n", "line")])
def test_duplicate_parts_at_their_thresholds(separator: str, unit: str) -> None:
    different = [f"part {n}" for n in range(7)]
    at = separator.join([*different, "part 0", "part 1", "part 2"])  # 3 of 10
    above = separator.join([*different[:6], "part 0", "part 1", "part 2"])  # 3 of 9
    assert repetition(at, **NO_CHARACTERS) is None
    assert repetition(above, **NO_CHARACTERS) == f"duplicate_{unit}s"


def test_duplicate_characters_at_their_thresholds() -> None:
    # 21 characters of a repeated line in a text of 100 and 105 characters.
    repeated = "x" * 21
    for fill, reason in ((55, "duplicate_line_characters"), (61, None)):
        parts = [
            repeated,
            *("abcdefghij"[i] * (fill // 5 if i else fill - 4 * (fill // 5)) for i in range(5)),
            repeated,
        ]
        text = "\n".join(parts)
        share = 21 / len(text)
        assert (share > 0.20) == (reason is not None)
        assert repetition(text, **NO_NGRAMS, max_duplicate_lines=None) == reason


def test_repeated_parts_counts_second_and_later_ones() -> None:
    assert repeated_parts(["ab", "c", "ab", "ab", "d"]) == (2, 4)


def test_top_ngrams() -> None:
    words = ["a", "bb", "a", "bb", "c", "a", "bb"]
    assert Ngrams(words).top_characters(2) == 3 * len("a bb")
    assert Ngrams(words).top_characters(3) == 0  # each occurs once
    assert Ngrams(["a"]).top_characters(2) == 0
    head = "xx yy aa xx yy bb xx yy cc xx yy dd xx yy ee xx yy "  # `xx yy` 6 times: 30 characters
    assert repetition(head + "q" * (150 - len(head))) is None  # 30 of 150 = 0.20
    assert repetition(head + "q" * (149 - len(head))) == "top_2gram"


def test_repeated_ngrams_do_not_overlap() -> None:
    words = "a b c d e a b c d e a b c d e".split()
    assert Ngrams(words).repeated_characters(5) == 10  # the second and third run of five
    assert Ngrams(words).repeated_characters(10) == 10  # from the sixth word on
    assert Ngrams(list("abcdef")).repeated_characters(5) == 0
    assert Ngrams(["x"] * 11).repeated_characters(5) == 10


@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=40), st.integers(1, 6))
def test_ngram_counts_are_those_of_plain_python(words: list[str], n: int) -> None:
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    gram, count = (Counter(grams).most_common(1) or [((), 0)])[0]
    assert Ngrams(words).top_characters(n) == (len(" ".join(gram)) * count if count > 1 else 0)
    seen, characters, start = set(), 0, 0
    while start < len(grams):
        if grams[start] in seen:
            characters += len("".join(grams[start]))
            start += n
        else:
            seen.add(grams[start])
            start += 1
    assert Ngrams(words).repeated_characters(n) == characters


def test_duplicate_ngrams_at_their_threshold() -> None:
    sentence = "one two tri for fiv"  # 15 letters, 19 characters
    off = {"max_top_ngram_characters": None, "max_duplicate_lines": None, "max_duplicate_line_characters": None}
    for length, reason in ((100, None), (99, "duplicate_5gram")):
        text = f"{sentence} {sentence} "
        text += "q" * (length - len(text))
        assert repetition(text, **off) == reason  # 15 of 100 = 0.15


def test_a_short_text_does_not_repeat_itself() -> None:
    assert repetition("Return the length of an object.") is None


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


def test_the_first_rule_broken_names_the_reason() -> None:
    rows = [{"id": str(n), "text": text, "source": "", "url": "", "license": "", "lang": ""}
            for n, text in enumerate(["", "few words", PROSE * 5])]  # fmt: skip
    batch = pa.RecordBatch.from_pylist(rows, schema=DOCUMENTS)
    kept, dropped = split_by_verdict(
        GopherRepetition(RepetitionConfig())(GopherQuality(QualityConfig())(NotEmpty()(batch)))
    )
    assert kept.num_rows == 0
    assert dropped.column("reason").to_pylist() == ["empty", "too_few_words", "top_3gram"]
    assert dropped.column("value").to_pylist()[:2] == [0.0, 2.0]


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
