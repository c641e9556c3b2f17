"""A page's text, by resiliparse or by trafilatura; pages that would take either of them too long, by patterns."""

from __future__ import annotations

import html as entities
import logging
import re
from typing import Any

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

from llmctl.config.errors import InputError
from llmctl.data.clean.markup import Markup, scan

# resiliparse's main content takes time quadratic in the depth of a page (10,000 levels: 2 s), its parser in
# the number of attributes of one tag (20,000: 1 s). Pages that people write have neither.
MAX_DEPTH = 128
MAX_ATTRIBUTES = 64
FEW_TAGS = 1000  # too few for either to matter
DEEPER = " > ".join("*" * MAX_DEPTH)

# An unclosed <b> is opened anew in every later paragraph, and so are a thousand of them: pages can grow to the
# square of their length in memory. As <span> they do not.
MAX_COPIES = 1_000_000  # of 400 bytes
FORMATTING = "a|b|big|code|em|font|i|nobr|s|small|strike|strong|tt|u"  # as in markup.c, which counts them
INERT = "abbr|br|cite|img|q|span|sub|sup|wbr"
FORMATTING_TAG = re.compile(rf"<(/?)(?:{FORMATTING})(?=[\s/>])", re.IGNORECASE)

# Each alternative ends at the end of the text at the latest, so nothing is read twice.
MARKUP = re.compile(
    r"<!--.*?(?:-->|\Z)|<(?P<raw>script|style|template|noscript)\b.*?(?:</(?P=raw)[^>]*+>?|\Z)"
    r"|</?(?P<name>[a-zA-Z][^\s/>]*+)[^>]*+(?:>|\Z)"
    r"|<[!?][^>]*+(?:>|\Z)",
    re.IGNORECASE | re.DOTALL,
)
WITHIN_A_LINE = frozenset(f"{FORMATTING}|{INERT}|kbd|mark|samp|var".split("|")) - {"br"}

TEX_WRAPPER = re.compile(r"\{\\(?:displaystyle|textstyle) ?(.*)\}", re.DOTALL)
TEX_SCRIPT = "script[type^='math/tex']"
DRAWN_FORMULAS = ".katex-html, .MathJax_Preview, .MathJax, .MathJax_Display"  # beside the TeX of the same formula


def page_text(html: str, *, main_content: bool) -> str:
    """The text of a page, in time linear in its length.

    Args:
        html: a page or a fragment.
        main_content: leave out menus, side bars and footers; ignored for pages nested deeper than 128 levels.
    """
    markup = scan(html, MAX_ATTRIBUTES)
    if markup.attributes >= MAX_ATTRIBUTES:
        return strip_markup(html)
    tree = HTMLTree.parse(without_copies(html, markup))
    if markup.mathematics:
        keep_tex(tree)
    if main_content and markup.tags > FEW_TAGS and is_deep(tree):
        main_content = False
    text: str = extract_plain_text(tree, main_content=main_content, alt_texts=False)
    return text


def without_copies(html: str, markup: Markup) -> str:
    """`html` with bold, links and the like as `<span>` where unclosed ones could multiply beyond bounds."""
    copies = markup.unclosed * markup.tags
    return html if copies <= MAX_COPIES else FORMATTING_TAG.sub(r"<\1span ", html)


def is_deep(tree: HTMLTree) -> bool:
    """Whether the page is nested deeper than `MAX_DEPTH`."""
    return tree.body is not None and tree.body.query_selector(DEEPER) is not None


def keep_tex(tree: HTMLTree) -> None:
    """Put the TeX of a formula, between dollar signs, in its place: from MathML annotations, `alttext`, MathJax.

    MathML without TeX stays as it is.
    """
    root: Any = tree.document  # its types leave out what elements have
    scripts = root.query_selector_all(TEX_SCRIPT)
    formulas = root.query_selector_all("math")
    found = [(node, _script_tex(node)) for node in scripts] + [(node, _mathml_tex(node)) for node in formulas]
    if any(tex for _, tex in found):
        for drawn in root.query_selector_all(DRAWN_FORMULAS):
            if drawn.query_selector("math") is None:
                drawn.decompose()
    for node, tex in found:
        if tex and node.parent is not None:
            node.parent.replace_child(tree.create_text_node(tex), node)


def _script_tex(node: Any) -> str:
    display = "mode=display" in (node.getattr("type") or "")
    return _between_dollars(node.text or "", display=display)


def _mathml_tex(node: Any) -> str:
    notes = (
        note for note in node.query_selector_all("annotation") if "tex" in (note.getattr("encoding") or "").lower()
    )
    note = next(notes, None)
    tex = (note.text if note is not None else node.getattr("alttext")) or ""
    return _between_dollars(tex, display=node.getattr("display") == "block")


def _between_dollars(tex: str, *, display: bool) -> str:
    tex = tex.strip()
    if wrapped := TEX_WRAPPER.fullmatch(tex):
        tex = wrapped.group(1).strip()
    mark = "$$" if display else "$"
    return f"{mark}{tex}{mark}" if tex else ""


def strip_markup(html: str) -> str:
    """The text between the tags, by patterns alone: for pages that no person wrote."""

    def replace(markup: re.Match[str]) -> str:
        name = (markup["name"] or "").lower()
        return "" if not name or name in WITHIN_A_LINE else "\n"

    return entities.unescape(MARKUP.sub(replace, html))


def trafilatura_text(html: str) -> str:
    """The main content by trafilatura, with tables and formatting of code; "" where it finds none.

    Raises:
        InputError: trafilatura is not installed.
    """
    try:
        from trafilatura import extract
    except ImportError:
        raise InputError("extractor=trafilatura needs trafilatura", hint="pip install 'llmctl[trafilatura]'") from None
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # a page without content is counted, not told
    markup = scan(html, MAX_ATTRIBUTES)
    if markup.attributes >= MAX_ATTRIBUTES:
        return strip_markup(html)
    html = without_copies(html, markup)
    tree = HTMLTree.parse(html)
    if is_deep(tree):
        return page_text(html, main_content=False)
    if markup.mathematics:
        keep_tex(tree)
        html = str(tree)
    return extract(html, include_comments=False, include_tables=True) or ""
