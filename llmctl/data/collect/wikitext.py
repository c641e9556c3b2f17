"""MediaWiki markup to plain text: a small reduction that loses what only a wiki could expand.

Templates `{{…}}`, tables `{|…|}`, references, comments, files and categories go; links leave their label,
external links theirs, headings and list items stay as lines, emphasis and other tags leave their content.
Headings under which nothing is left go too. Every step is linear in the text, whatever it holds.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection
from dataclasses import dataclass, field

# Tags whose content is no text of the article, or makes none without their extension.
WITHOUT_TEXT = "ref gallery timeline imagemap templatestyles score graph mapframe maplink hiero indicator references"
EMPTY_TAG = re.compile(rf"<(?:{'|'.join(WITHOUT_TEXT.split())})\b[^<>]{{0,2000}}/>", re.IGNORECASE)
TAG = re.compile(r"</?([A-Za-z][A-Za-z0-9]{0,20})\b[^<>]{0,2000}>")
BRACKETS = re.compile(r"\{\{|\}\}|\[\[|\]\]|^[ :]{0,20}\{\||^\|\}(?!\})", re.MULTILINE)
CLOSES = {"}}": "{{", "]]": "[[", "|}": "{|"}
DEEPEST = 40  # brackets within brackets; deeper ones are taken as they are
EXTERNAL = re.compile(r"\[(?:[a-z]{2,10}:)?//[^\s\[\]]{1,2000}(?:[ \t]{1,9}([^\[\]\n]{0,2000}))?\]", re.IGNORECASE)
EMPHASIS = re.compile(r"'{2,5}")
MAGIC_WORD = re.compile(r"__[A-Z]{2,30}__")
HEADING = re.compile(r"(={1,6})([^\n]*?[^=\n])\1[ \t]*")
LIST_ITEM = re.compile(r"([*#:;]{1,20})[ \t]*")
EMPTY_PARENTHESES = re.compile(r"[ \t]?\([ \t,;]{0,20}\)")
FILES = ("file", "image", "media", "category")


@dataclass
class _Open:
    """A bracket that waits for its end, and what stands behind it so far."""

    bracket: str
    parts: list[str] = field(default_factory=list)


def plain_text(markup: str, dropped_namespaces: Collection[str] = FILES) -> str:
    """The text of a page.

    Args:
        markup: what the page's author wrote.
        dropped_namespaces: lower-case prefixes of links that leave nothing (`file`, `datei`, `category`).
    """
    text = _without_tags(EMPTY_TAG.sub("", _without_comments(markup)))
    text = _without_brackets(text, dropped_namespaces)
    text = EMPHASIS.sub("", EXTERNAL.sub(lambda found: found[1] or "", text))
    text = html.unescape(MAGIC_WORD.sub("", text))
    return _lines(EMPTY_PARENTHESES.sub("", text))


def _without_comments(markup: str) -> str:
    kept: list[str] = []
    place = 0
    while (begin := markup.find("<!--", place)) >= 0 and (end := markup.find("-->", begin)) >= 0:
        kept.append(markup[place:begin])
        place = end + 3
    return "".join(kept) + markup[place:]


def _without_tags(text: str) -> str:
    """Without tags; those of `WITHOUT_TEXT` go with what is between them."""
    silent = set(WITHOUT_TEXT.split())
    kept: list[str] = []
    place, inside, begun = 0, "", 0
    for tag in TAG.finditer(text):
        name = tag[1].lower()
        closing = tag[0].startswith("</")
        if inside:
            if closing and name == inside:
                inside, place = "", tag.end()
            continue
        kept.append(text[place : tag.start()])
        place = tag.end()
        if name in ("br", "p", "div", "li"):
            kept.append("\n")
        if name in silent and not closing:
            inside, begun = name, tag.end()
    kept.append(text[begun if inside else place :])  # one that never ends hides nothing
    return "".join(kept)


def _without_brackets(text: str, dropped: Collection[str]) -> str:
    """Without templates and tables, and with links as their labels; brackets without a partner stay."""
    stack = [_Open("")]
    place = 0
    for found in BRACKETS.finditer(text):
        stack[-1].parts.append(text[place : found.start()])
        place = found.end()
        token = found[0].strip(" :")
        if token not in CLOSES:
            if len(stack) <= DEEPEST:
                stack.append(_Open(token))
            else:
                stack[-1].parts.append(token)
            continue
        opener = CLOSES[token]
        if not any(level.bracket == opener for level in stack):
            stack[-1].parts.append(token)
            continue
        _close_down_to(stack, opener)
        content = "".join(stack.pop().parts)
        stack[-1].parts.append(_label(content, dropped) if opener == "[[" else "")
    stack[-1].parts.append(text[place:])
    while len(stack) > 1:
        _give_up(stack)
    return "".join(stack[0].parts)


def _close_down_to(stack: list[_Open], opener: str) -> None:
    while stack[-1].bracket != opener:
        _give_up(stack)


def _give_up(stack: list[_Open]) -> None:
    """The innermost bracket has no partner: it is text of the level around it."""
    level = stack.pop()
    stack[-1].parts.append(level.bracket + "".join(level.parts))


def _label(content: str, dropped: Collection[str]) -> str:
    """What `[[content]]` shows."""
    target, bar, label = content.partition("|")
    prefix, colon, _ = target.partition(":")
    if colon and prefix.strip().lower() in dropped:
        return ""
    return label.rpartition("|")[2] if bar and label else target.lstrip(":")


def _lines(text: str) -> str:
    """Headings and list items without their marks, blank lines in single file, empty sections left out."""
    kept: list[tuple[int, str]] = []  # (level of a heading or 0, line)
    for raw in text.split("\n"):
        line = raw.strip()
        heading = HEADING.fullmatch(line) if line.startswith("=") and line.endswith("=") else None
        if heading:
            level, line = len(heading[1]), heading[2].strip()
            while kept and (not kept[-1][1] or kept[-1][0] >= level):  # an empty section ends here
                kept.pop()
            if kept:
                kept.append((0, ""))
            kept.append((level, line))
            continue
        item = LIST_ITEM.match(line)
        if item:
            line = ("- " if item[1][-1] in "*#" else "") + line[item.end() :]
        if line or (kept and kept[-1][1]):
            kept.append((0, line))
    while kept and (not kept[-1][1] or kept[-1][0]):
        kept.pop()
    return "\n".join(line for _, line in kept)
