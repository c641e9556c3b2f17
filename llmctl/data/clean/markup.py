"""Python's side of markup.c: what a page's markup holds that could make a parser slow."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from llmctl.data.compiled import library


class Markup(NamedTuple):
    """What one pass over a page finds.

    Attributes:
        tags: `<` signs.
        attributes: most attributes of one tag, long names and values counted as several; the pass ends where it reaches
            the bound that was given.
        unclosed: formatting tags (<b>, <a>, …) whose end does not follow with only text, inert tags and closed pairs
            between: at least as many as a parser sees unclosed.
        mathematics: whether there is a <math>, or TeX in a script.
    """

    tags: int
    attributes: int
    unclosed: int
    mathematics: bool


def scan(html: str, most_attributes: int) -> Markup:
    """Look through a page's markup, in time linear in its length."""
    content = html.encode("utf-8", "surrogatepass")
    found = (ctypes.c_int64 * len(Markup._fields))()
    library(__file__, "markup").scan_markup(
        content, ctypes.c_int64(len(content)), ctypes.c_int64(most_attributes), found
    )
    tags, attributes, unclosed, mathematics = found
    return Markup(tags, attributes, unclosed, bool(mathematics))
