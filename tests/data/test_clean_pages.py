"""HTML to text: what is kept of a page, and that no page crashes it or takes it more than linear time."""

import subprocess
import sys
from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.config.clean import CleanConfig
from llmctl.data.clean import run
from llmctl.data.clean.html import PAGE, STRUCTURE, HtmlToText, names_page
from llmctl.data.clean.kernel import with_text
from llmctl.data.clean.markup import scan
from llmctl.data.clean.pages import (
    MAX_ATTRIBUTES,
    MAX_COPIES,
    page_text,
    strip_markup,
    trafilatura_text,
    without_copies,
)
from tests.data.conftest import rows_of

CODE = "def f():\n    if x:\n        return  1\n\n    # end"
SENTENCE = "A sentence of the article that is long enough to be taken for its main content, as it has many words. "
PAGE_OF_ALL = f"""<!doctype html><html><head><title>T</title></head><body><nav><ul><li><a href=/>Home</a></ul></nav>
<main><h1>Heading</h1><p>{SENTENCE * 3}</p><p>Cost $a^2$ stays. Inline <code>x = 1</code> too.</p><pre><code>{CODE}
</code></pre><table><tr><th>A<th>B</tr><tr><td>1<td>2 <b>x</b></tr></table>
<p>By annotation <math><semantics>
<mi>x</mi><annotation encoding="application/x-tex">{{\\displaystyle x^{{2}}}}</annotation>
</semantics></math> by alttext <math display=block alttext="\\frac12"><mn>1</mn></math> by MathJax
<span class="MathJax">drawn</span><script type="math/tex; mode=display">\\int f</script> by KaTeX <span class="katex">
<span class="katex-mathml"><math><semantics>
<mi>y</mi><annotation encoding="application/x-tex">y_1</annotation></semantics>
</math></span><span class="katex-html">y1y1</span></span> plain <math><mi>z</mi></math>.</p></main>
<footer>Imprint</footer></body></html>"""


@pytest.mark.parametrize("main_content", [True, False])
def test_tables_code_and_mathematics_are_kept(main_content: bool) -> None:
    text = page_text(PAGE_OF_ALL, main_content=main_content)
    assert CODE in text
    assert "A\t\tB\n1\t\t2 x" in text
    assert "Cost $a^2$ stays. Inline x = 1 too." in text
    for formula in ("annotation $x^{2}$ by", "alttext $$\\frac12$$ by", "$$\\int f$$ by KaTeX $y_1$ plain z."):
        assert formula in text
    assert "drawn" not in text
    assert ("Home" in text, "Imprint" in text) == (not main_content, not main_content)


def test_trafilatura_by_flag(documents: Callable, stage: Callable) -> None:
    pytest.importorskip("trafilatura")
    text = trafilatura_text(PAGE_OF_ALL)
    assert "    if x:\n        return  1" in text
    assert "| 1 | 2 x |" in text
    assert "$x^{2}$" in text
    assert "Home" not in text
    assert trafilatura_text("<p></p>") == ""
    given = documents([{"id": "p.html", "text": PAGE_OF_ALL}])
    _, artifact = stage(
        run, CleanConfig(extractor="trafilatura", quality={"enabled": False}, repetition={"enabled": False}), given
    )
    assert "| 1 | 2 x |" in rows_of(artifact)[0]["text"]


def test_resiliparse_needs_no_trafilatura() -> None:
    code = "import sys, llmctl.data.clean.stage; print(sorted({'trafilatura', 'fasttext', 'kenlm'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


N = 1_000_000
HOSTILE = {
    "nested": "<div>" * N + "x",
    "nested inline": "<b>" * N + "x",
    "tables": "<table><tr><td>" * (N // 10) + "x",
    "attribute of 10 MB": '<a title="' + "x" * 10_000_000 + '">x</a>',
    "attribute without end": '<a title="' + "x" * 10_000_000,
    "attributes": "<a " + " ".join(f"a{n}='>'" for n in range(N // 4)) + ">x</a>",
    "attributes, few a tag": ("<a " + " ".join(f"a{n}" for n in range(60)) + ">x</a>") * 3000,
    "formatting that is never closed": "".join(f"<b id={n}><p>" for n in range(20_000)) + "x",
    "formatting closed in comments": "".join(f"<b id={n}><!--</b>--><p>" for n in range(10_000)) + "x",
    "formatting within objects": "".join(f"<b id={n}><object></b></object><p>" for n in range(5_000)) + "x",
    "open tags": "<a" * N,
    "quotes": "<a x='" * N,
    "equals": "<a x=" * N,
    "comments": "<!--" * N,
    "scripts": "<script>" * N,
    "entities": "&#x" * N,
    "foreign": "<svg><foreignObject><p></svg></foreignObject></p>" * (N // 50),
    "paragraphs": "<p " * N,
    "tags in a name": ("<x" * 60_000 + ">") * 40,
    "tags in values": ("<a b=" + "<x" * 900 + ">") * 2000,
    "tags in quotes": '<a b="' + "<x>" * N + '">',
    "quotes in turns": """<x y="<x y='""" * (N // 4),
    "ends in values": "".join(f"<b id={n} title='</b>'><p>" for n in range(20_000)) + "x",
    "ends in tables": "".join(f"<b id={n}><table><td></b></table><p>" for n in range(5_000)) + "x",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pages_end(name: str) -> None:
    """Quadratic time or memory would not: the timeout of the test run is the bound."""
    text = page_text(HOSTILE[name], main_content=True)
    assert len(text) <= len(HOSTILE[name])
    assert len(strip_markup(HOSTILE[name])) <= len(HOSTILE[name])
    assert len(HtmlToText("always").convert(HOSTILE[name][:1000])) <= 1000


def test_deep_and_attribute_laden_pages_keep_their_text() -> None:
    assert page_text("<div>" * 5000 + "words &amp; more" + "</div>" * 5000, main_content=True) == "words & more"
    laden = "<a " + " ".join(f"a{n}=1" for n in range(200)) + ">words</a><script>x</script><!-- c --><p>more<br>end"
    assert scan(laden, MAX_ATTRIBUTES).attributes == MAX_ATTRIBUTES
    assert page_text(laden, main_content=True).split() == ["words", "more", "end"]
    unclosed = "".join(f"<b id={n}><p>word{n}" for n in range(3000))
    assert page_text(unclosed, main_content=False).split() == [f"word{n}" for n in range(3000)]


def test_ordinary_pages_are_parsed_as_they_are() -> None:
    links = "".join(
        f'<li><a class="x" href="/{n}?a=b&amp;c=d"><span>item <b>{n}</b></span></a></li>' for n in range(3000)
    )
    markup = scan(links, MAX_ATTRIBUTES)
    assert (markup.tags, markup.attributes, markup.unclosed) == (24_000, 2, 0)
    assert without_copies(links, markup) is links


def test_patterns_that_find_pages_are_linear() -> None:
    """Review item 7: the comment loop was exponential. 200,000 comments, then no page."""
    for hostile in ("<!--" * 200_000, "<!-- -->" * 200_000, " " * 1_000_000, "<?xml " * 200_000, "<?xml>" * 200_000):
        assert PAGE.match(hostile) is None
        assert STRUCTURE.search(hostile) is None
    assert STRUCTURE.search("<p " * 300_000) is None
    assert not names_page(".html" * 100_000 + "~x" + ":1" * 100_000)
    assert names_page("http://x.org/a.html?q=.txt#f")
    assert names_page("page.html:12~2")
    assert not names_page("page.txt?a.html")


def test_characters_that_are_none() -> None:
    page = "<p>a\0b &#xD800; &#0; \u202eright\u202c \x1b[31m</p>"
    text = page_text(page, main_content=False)
    assert "right" in text
    batch = pa.RecordBatch.from_pydict({"text": ["x"]})
    assert with_text(batch, ["lone \ud800 surrogate"]).column("text").to_pylist() == ["lone ? surrogate"]


@given(st.text(alphabet="<>/=!-\"' \nabp\0&;#x\ud7ff\u202e", max_size=300), st.booleans())
def test_any_markup_gives_text(markup: str, main_content: bool) -> None:
    page_text(markup, main_content=main_content).encode()
    strip_markup(markup).encode()


NAMES = st.from_regex(r"[a-z][a-z0-9:_-]{0,20}", fullmatch=True)
VALUES = st.text(alphabet="abc<>/= \n&", max_size=20)
ATTRIBUTES = st.one_of(
    NAMES,
    st.builds("{}={}".format, NAMES, st.from_regex(r"[a-z0-9:.?&][a-z0-9:./?&=]{0,20}", fullmatch=True)),
    st.builds('{} = "{}"'.format, NAMES, VALUES),
    st.builds("{}='{}'".format, NAMES, VALUES),
)


@given(st.lists(ATTRIBUTES, max_size=40), st.sampled_from(["p", "a", "img", "h1", "x-y"]))
def test_attributes_are_counted_as_a_browser_counts_them(attributes: list[str], name: str) -> None:
    hidden = "".join(attributes).count("<")  # what stands in quotes may be counted too, and may be more
    found = scan(f"text <{name} {' '.join(attributes)}> more", 10_000)
    assert found.attributes == len(attributes) or (hidden and found.attributes >= len(attributes))
    assert found.tags == 1 + hidden


@pytest.mark.parametrize(
    ("markup", "unclosed"),
    [
        ("<b>x</b> <i>y</I > <A href=x>z</a>", 0),
        ("<b>x <b>y</b>", 1),
        ("<b><i>x</b></i>", 2),
        ("<a><code>x<span>y</span><br></code></a>" * 5, 0),
        ("<b>x<p>y</b>", 1),
        ("<b>x<!-- c --></b>", 1),
        ("<b>x<script></b></script>", 1),
        ("<b title='</b>'>x", 1),
        ("<b title='<i>'>x</b>", 2),
        ("<b", 1),
        ("<b>" * 1000, 1000),
        ("<b>" * 64 + "</b>" * 64, 0),
        ("<strong>x</strong><big>y</big><font size=1>z</font><h1>n</h1><bb>m", 0),
        ("</b></b><b>x</b>", 0),
        ("x < y <3 <> <b>", 1),
    ],
)
def test_formatting_that_stays_open_is_counted(markup: str, unclosed: int) -> None:
    assert scan(markup, MAX_ATTRIBUTES).unclosed == unclosed


@given(st.text(alphabet="<>/=!\"' \nabimgpx\0&", max_size=400))
def test_any_markup_is_scanned(markup: str) -> None:
    found = scan(markup, MAX_ATTRIBUTES)
    assert found.tags == markup.count("<")
    assert 0 <= found.attributes <= MAX_ATTRIBUTES
    assert 0 <= found.unclosed <= found.tags


def test_copies_are_bounded_where_formatting_is_never_closed() -> None:
    hostile = "".join(f"<b id={n} title='</b>'><p>" for n in range(3000))
    markup = scan(hostile, MAX_ATTRIBUTES)
    assert markup.unclosed * markup.tags > MAX_COPIES
    assert "<b " not in without_copies(hostile, markup)


@pytest.mark.parametrize(
    ("page", "mathematics"),
    [("<math>", 1), ("<p><MATH display=block>", 1), ("<script type='math/tex'>", 1), ("<maths></math> mathtex", 0)],
)
def test_mathematics_is_found(page: str, mathematics: bool) -> None:
    assert scan(page, MAX_ATTRIBUTES).mathematics == mathematics
