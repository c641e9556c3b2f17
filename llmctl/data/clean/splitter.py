"""Splits English text into words as spaCy's blank English pipeline does, without spaCy.

White space makes chunks; of each chunk, marks are taken off both ends one by one (an ending like `'s`, a
unit behind a number too) until a special word is left or nothing more comes off; an address stays whole; what
is left is split at marks inside it, such as the hyphen of `well-known`. Last, words that together spell a
special word with marks in it (`:-)`, `Ph.D.`) are joined again. The rules and their order are facts of spaCy
3.8; the code is our own, in time linear in the length of the chunk. One difference: words are joined within a
chunk only, where spaCy looks across a space before it drops the match, which can keep it from joining `x :)`
`)`.
"""

# ruff: noqa: RUF001 - characters that look alike are told apart here
from __future__ import annotations

import re
from functools import cache
from itertools import pairwise

from llmctl.data.clean.characters import (
    CURRENCY,
    DIGIT,
    DIGITS,
    LETTER,
    LOWER,
    MARK,
    OPENS,
    QUOTE,
    STOPPABLE,
    SYMBOL,
    UPPER,
    Kinds,
)
from llmctl.data.clean.special_words import special_words
from llmctl.data.clean.web_address import is_address

# Length, area, volume, mass, speed, pressure, memory; Latin, Cyrillic, Arabic.
UNIT_WORDS = (
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph "
    "hPa Pa mbar mb MB kb KB gb GB tb TB T G M K % "
    "км км² км³ м м² м³ дм дм² дм³ см см² см³ мм мм² мм³ нм кг г мг м/с км/ч кПа Па мбар "
    "Кб КБ кб Мб МБ мб Гб ГБ гб Тб ТБ "
    "тбكم كم² كم³ م م² م³ سم سم² سم³ مم مم² مم³ كم غرام جرام جم كغ ملغ كوب اكواب"
)
UNITS = frozenset(UNIT_WORDS.split())
LONGEST_UNIT = max(map(len, UNITS))
LONGEST_SPECIAL = max(map(len, special_words()))
DOLLARS = frozenset(("US$", "C$", "A$"))
STOPS = re.compile(r"\.+")
# What may be a mark inside a word, depending on what stands around it.
INNER_MARK = re.compile(r"\.+|-+|—+|[,:<>=/+*^~]|[^\x00-\x7f]")
KINDS = Kinds()


def split_chunk(chunk: str) -> list[str]:
    """The words of a chunk without white space; joined, they are the chunk again."""
    if chunk.isalpha():
        return list(special_words().get(chunk, (chunk,)))
    words = _split(chunk, special_words())
    return _join_specials(words) if len(words) > 1 else words


def split(text: str) -> list[str]:
    """The words of a text, in order; white space is no word."""
    return [word for chunk in text.split() for word in split_chunk(chunk)]


def _split(chunk: str, specials: dict[str, tuple[str, ...]]) -> list[str]:
    start, end, behind = 0, len(chunk), []
    words: list[str] = []
    while start < end and not _is_special(chunk, start, end, specials):
        prefix = _prefix(chunk, start, end)
        if prefix and _is_special(chunk, start + prefix, end, specials):
            words.append(chunk[start : start + prefix])
            start += prefix
            break
        suffix = _suffix(chunk, start + prefix, end)
        if suffix and _is_special(chunk, start, end - suffix, specials):
            behind.append(chunk[end - suffix : end])
            end -= suffix
            break
        if not prefix and not suffix:
            break
        if prefix:
            words.append(chunk[start : start + prefix])
        if suffix:
            behind.append(chunk[end - suffix : end])
        start, end = start + prefix, end - suffix
    if start < end:
        middle = chunk[start:end]
        if special := specials.get(middle):
            words += special
        elif middle.isalnum() or is_address(middle):
            words.append(middle)
        else:
            words += _split_inside(middle)
    return words + behind[::-1]


def _is_special(chunk: str, start: int, end: int, specials: dict[str, tuple[str, ...]]) -> bool:
    return 0 < end - start <= LONGEST_SPECIAL and chunk[start:end] in specials


def _prefix(chunk: str, start: int, end: int) -> int:
    """The length of the mark that chunk[start:end] starts with."""
    first = chunk[start]
    if KINDS[first] & OPENS:
        return 1
    if first == "." and (stops := STOPS.match(chunk, start, end)):
        return stops.end() - start if stops.end() - start > 1 else 0
    if first == "+":
        return int(start + 1 == end or chunk[start + 1] not in DIGITS)
    if first in "CA" and chunk[start + 1 : min(end, start + 2)] == "$":
        return 2
    return 3 if first == "U" and chunk[start + 1 : min(end, start + 3)] == "S$" else 0


def _suffix(chunk: str, start: int, end: int) -> int:
    """The length of the mark, ending or unit that chunk[start:end] ends in; of several, the longest."""
    if start >= end:
        return 0
    last, before = chunk[end - 1], chunk[end - 2] if end - 2 >= start else ""
    kind = KINDS[last]
    if last == ".":
        length = _stops(chunk, start, end)
    elif kind & MARK:
        length = 2 if last == before == "…" else 1
    elif last in "sS" and before and before in "'’":
        length = 2
    elif last == "+":
        length = int(bool(before) and before in DIGITS)
    else:
        length = _behind_a_digit(chunk, start, end, DOLLARS | {last} if kind & CURRENCY else UNITS)
    return length


def _stops(chunk: str, start: int, end: int) -> int:
    """How many full stops come off the end: all of several; one behind what a sentence can end in."""
    if end - 2 < start:
        return 0
    before = chunk[end - 2]
    if before == ".":
        at = end - 2
        while at > start and chunk[at - 1] == ".":
            at -= 1
        return end - at
    if KINDS[before] & STOPPABLE:
        return 1
    first = chunk[end - 3] if end - 3 >= start else ""
    if not first or not KINDS[before] & UPPER:
        return 0
    return int(bool(KINDS[first] & UPPER) or (first == "°" and before in "FCK"))


def _behind_a_digit(chunk: str, start: int, end: int, endings: frozenset[str]) -> int:
    """The length of the ending, if it is one of `endings` and a digit stands before it."""
    for length in range(1, min(LONGEST_UNIT, end - start - 1) + 1):
        if chunk[end - length - 1] in DIGITS:
            return length if chunk[end - length : end] in endings else 0
    return 0


def _split_inside(middle: str) -> list[str]:
    """`middle` split at the marks inside it, which are words of their own. A mark at its very start stays."""
    words, start = [], 0
    for found in INNER_MARK.finditer(middle):
        length = _mark_length(found[0], middle, found.start(), found.end()) if found.start() else 0
        if not length:
            continue
        if found.start() > start:
            words.append(middle[start : found.start()])
        start = found.start() + length
        words.append(middle[found.start() : start])
    return [*words, middle[start:]] if start < len(middle) else words


def _mark_length(mark: str, middle: str, start: int, end: int) -> int:
    """How much of `mark`, found at middle[start:end], is a word of its own, by the kinds of its neighbours."""
    before, after = KINDS[middle[start - 1]], KINDS[middle[end]] if end < len(middle) else 0
    kind, length = mark[0], len(mark)
    if kind == ".":
        return length if length > 1 or (before & (LOWER | QUOTE) and after & (UPPER | QUOTE)) else 0
    if kind == "-" and before & DIGIT and (length > 1 or after & DIGIT):
        return 1
    if kind in "-–—~":
        fits = length <= (2 if kind == "—" else 3) and before & (LETTER | DIGIT) and after & LETTER
    elif kind == ",":
        fits = before & LETTER and after & LETTER
    elif kind in ":<>=/":
        fits = before & (LETTER | DIGIT) and after & LETTER
    elif kind in "+*^":
        fits = before & DIGIT and (after & DIGIT or middle[end : end + 1] == "-")
    else:
        fits = kind == "…" or KINDS[kind] & SYMBOL
    return length if fits else 0


@cache
def _scattered() -> dict[tuple[str, str], list[tuple[str, ...]]]:
    """Special words with marks in them, as the words that they would fall into, by the first two of these."""
    table: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for special in special_words():
        if _prefix(special, 0, len(special)) or _suffix(special, 0, len(special)) or len(_split_inside(special)) > 1:
            words = _split(special, {})
            if len(words) > 1:
                table.setdefault((words[0], words[1]), []).append(tuple(words))
    return table


def _join_specials(words: list[str]) -> list[str]:
    """`words` with every run that spells a special word replaced by that word's own split.

    Of runs that overlap the longest counts, then the first.
    """
    table = _scattered()
    runs = [
        (at, at + len(pattern))
        for at, pair in enumerate(pairwise(words))
        if pair in table
        for pattern in table[pair]
        if tuple(words[at : at + len(pattern)]) == pattern
    ]
    if not runs:
        return words
    taken: set[int] = set()
    chosen: dict[int, int] = {}
    for start, end in sorted(runs, key=lambda run: (run[0] - run[1], run[0])):
        if start not in taken and end - 1 not in taken:
            chosen[start] = end
        taken.update(range(start, end))
    joined: list[str] = []
    at = 0
    while at < len(words):
        end = chosen.get(at, at + 1)
        joined += special_words()["".join(words[at:end])] if at in chosen else words[at:end]
        at = end
    return joined
