"""Sections and paragraphs: nothing is lost, code is not cut, ids say where a segment was."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.config.clean import CleanConfig
from llmctl.config.clean_steps import SegmentConfig
from llmctl.data.clean import run
from llmctl.data.clean.segments import Segments
from llmctl.store.card import render_card
from llmctl.store.contents import Contents
from tests.data.conftest import rows_of

MARKDOWN = """Before all.

# First

Text with `code`.

```python
# no heading

x = 1
```

## Second
More.
"""
REST = """=====
Title
=====

Intro.

Part
----
Some text
that goes on.

* item
* other

Sub part
~~~~~~~~
End."""


def cut(text: str, by: str) -> list[str]:
    return Segments(SegmentConfig.model_validate({"by": by})).cut(text)


def test_markdown_sections() -> None:
    first, second, third = cut(MARKDOWN, "section")
    assert first == "Before all."
    assert second == "# First\n\nText with `code`.\n\n```python\n# no heading\n\nx = 1\n```"
    assert third == "## Second\nMore."


def test_rest_sections() -> None:
    assert [piece.splitlines()[0] for piece in cut(REST, "section")] == ["=====", "Part", "Sub part"]
    assert cut(REST, "section")[0] == "=====\nTitle\n=====\n\nIntro."


@pytest.mark.parametrize(
    "text",
    [
        "a long sentence here\n---",
        "word\n\n----\nmore",
        "| a |\n-----",
        "#hashtag\n#!shebang",
        "x\n==",
        "- item\n------",
    ],
)
def test_what_is_no_heading(text: str) -> None:
    assert cut(text, "section") == [text]


def test_paragraphs() -> None:
    assert cut(MARKDOWN, "paragraph") == [
        "Before all.",
        "# First",
        "Text with `code`.",
        "```python\n# no heading\n\nx = 1\n```",
        "## Second\nMore.",
    ]
    assert cut("~~~\na\n\nb\n```\n\nc", "paragraph") == ["~~~\na\n\nb\n```\n\nc"]  # a fence that is never closed
    assert cut("", "paragraph") == [""]


@given(
    st.lists(
        st.sampled_from(["# h", "text", "", "  ", "===", "Title", "-----", "```", "~~~~", "* x", "    code"]),
        max_size=30,
    ),
    st.sampled_from(["section", "paragraph"]),
)
def test_every_line_lands_in_one_segment(lines: list[str], by: str) -> None:
    pieces = cut("\n".join(lines), by)
    kept = [line for piece in pieces for line in piece.split("\n") if line.strip()]
    assert kept == [line for line in lines if line.strip()]


def test_segments_in_the_stage(documents: Callable, stage: Callable) -> None:
    text = "\n\n".join(" ".join(f"the word of part{k} number{n}" for n in range(k * 5)) for k in range(1, 5))
    given = documents([{"id": "a", "text": text, "url": "u", "license": "MIT"}, {"id": "b", "text": "short"}])
    segment = {"by": "paragraph", "min_characters": 200, "max_characters": 450}
    config = CleanConfig(segment=segment, repetition={"enabled": False})
    product, artifact = stage(run, config, given)
    assert [row["id"] for row in rows_of(artifact)] == ["a#2", "a#3"]
    assert {row["url"] for row in rows_of(artifact)} == {"u"}
    totals = product.totals
    assert (totals["in"], totals["segments"], totals["kept"]) == (2, 5, 2)
    assert (totals["dropped.too_short"], totals["dropped.too_long"], totals["dropped.too_few_words"]) == (1, 1, 1)
    card = render_card(artifact.manifest, "a.clean", Contents(2, {}, {}, ()))
    assert "| kept | 2 | 40.00% |\n| in | 5 | |" in card
