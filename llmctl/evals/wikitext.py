"""Articles of WikiText as they were before their words were set apart, by the rules that published figures use."""

from __future__ import annotations

import re

JOINED = (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")
MARKS = ":;.!?,"  # which stand close behind a word
PAIRS = (r"\(\s*([^\)]*?)\s*\)", r"(\1)"), (r"\[\s*([^\]]*?)\s*\]", r"[\1]"), (r"{\s*([^}]*?)\s*}", r"{\1}")
QUOTES = (r"\"\s*([^\"]*?)\s*\"", r'"\1"'), (r"'\s*([^']*?)\s*'", r"'\1'")
OTHERS = (
    *(("= = = =", "===="), ("= = =", "==="), ("= =", "==")),
    *((" ° ", "°"), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")),
)


def restored(page: str) -> str:
    """The text of an article without the white space and the marks that its tokenization added."""
    page = page.replace("s '", "s'")
    for apart, joined in JOINED:
        page = page.replace(apart, joined)
    for mark in MARKS:
        page = page.replace(f" {mark} ", f"{mark} ")
    for pattern, close in (*PAIRS, *QUOTES):
        page = re.sub(pattern, close, page)
    for apart, joined in OTHERS:
        page = page.replace(apart, joined)
    return page
