"""From the text of an answer to the calls in it, piece by piece: what comes out does not depend on how it is cut."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from llmctl.tokens.tools import Convention

# A call whose name stands before its arguments: from here on these can be passed on as they come.
HEADER = re.compile(
    r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*'
    r'"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
ARGUMENTS = ("arguments", "parameters")
BETWEEN = "; \t\r\n"  # what stands between calls that nothing encloses


@dataclass(frozen=True)
class Said:
    """Text outside of calls."""

    text: str


@dataclass(frozen=True)
class Begun:
    """A call begins: the `index`-th of the answer."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class Argued:
    """The next part of the arguments of call `index`, as the model wrote it."""

    index: int
    text: str


Piece = Said | Begun | Argued


class _Depth:
    """Follows how deep JSON is nested, in text that comes in parts."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = self._escaped = False

    def end(self, text: str, floor: int, stop: str) -> int | None:
        """Where in `text` the nesting comes down to `floor`, or breaks off at `stop`; None where it goes on."""
        for place, character in enumerate(text):
            if self._quoted:
                self._quoted = self._escaped or character != '"'
                self._escaped = not self._escaped and character == "\\"
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= floor:
                    return place + 1
            elif character == stop:
                return place
        return None


class CallParser:
    """Reads one answer. What begins like a call and is none is text, as the model wrote it.

    Args:
        convention: how the model writes calls.
        names: of the functions that there are; where nothing encloses calls, what names another is text.
    """

    def __init__(self, convention: Convention, names: Collection[str]) -> None:
        self._convention = convention
        self._names = frozenset(names)
        self._stop = convention.end[:1]  # no JSON has it outside of strings
        self._text = ""  # not yet taken
        self._state = self._outside
        self._talks = False  # whether text came since the last call
        self._lead = ""  # what stood before the object that may be a call
        self._depth, self._scanned = _Depth(), 0  # of that object, and how much of `_text` it has seen
        self.calls = 0

    def feed(self, text: str) -> list[Piece]:
        """The pieces that `text`, the next of the answer, completes."""
        self._text += text
        pieces: list[Piece] = []
        before = None
        while before != (self._state, self._text):
            before = (self._state, self._text)
            pieces += self._state()
        return [piece for piece in pieces if piece != Said("")]

    def finish(self) -> list[Piece]:
        """The answer is over: what was held back. A call that was cut before its name was whole is text."""
        rest, self._text = self._text, ""
        if self._state == self._header:
            return [Said(self._lead + rest)]
        between = self.calls and not self._talks and not rest.strip()
        return [Said(rest)] if self._state == self._outside and rest and not between else []

    def _outside(self) -> Iterator[Piece]:
        """Text, until a call may begin. White space around calls belongs to them."""
        begin = self._convention.begin
        if self.calls and not self._talks:
            self._text = self._text.lstrip()
        if not begin:
            yield from self._outside_bare()
            return
        place = self._text.find(begin)
        if place >= 0:
            yield self._say(place, keep_space=False)
            self._open(len(self._text) - len(self._text.lstrip()) + len(begin))
            return
        kept = next((size for size in range(len(begin) - 1, 0, -1) if self._text.endswith(begin[:size])), 0)
        yield self._say(len(self._text) - kept, keep_space=False)

    def _outside_bare(self) -> Iterator[Piece]:
        """Where nothing encloses calls: an object at the beginning of the answer, or behind a call."""
        start = len(self._text) - len(self._text.lstrip(BETWEEN if self.calls else None))
        if self._text[start : start + 1] == "{" and not self._talks:
            self._open(start)
        elif self._text[start:]:
            yield self._say(len(self._text))

    def _say(self, size: int, *, keep_space: bool = True) -> Said:
        """Take so many characters as text, perhaps without white space at their end, which is left."""
        said = self._text[:size] if keep_space else self._text[:size].rstrip()
        self._text = self._text[len(said) :]
        self._talks = self._talks or bool(said)
        return Said(said)

    def _open(self, size: int) -> None:
        """An object that may be a call begins behind so many characters."""
        self._lead, self._text = self._text[:size], self._text[size:]
        self._depth, self._scanned = _Depth(), 0
        self._state = self._header

    def _header(self) -> Iterator[Piece]:
        """The call up to its arguments; or all of it, where its keys stand in another order."""
        if self._text.strip() and not self._text.lstrip().startswith("{"):
            yield self._no_call()
        elif (found := HEADER.match(self._text)) and self._known(name := _string(found[1])):
            self._depth.end(self._text[self._scanned : found.end()], 0, self._stop)
            self._text = self._text[found.end() :]
            self._state = self._arguments
            yield self._begin(name)
        elif (end := self._depth.end(self._text[self._scanned :], 0, self._stop)) is None:
            self._scanned = len(self._text)
        elif (call := _call(self._text[: self._scanned + end])) and self._known(call[0]):
            self._text = self._text[self._scanned + end :]
            self._state = self._behind
            yield self._begin(call[0])
            yield Argued(self.calls - 1, call[1])
        else:
            yield self._no_call()

    def _no_call(self) -> Said:
        """What stood before the object is text, and so is the object."""
        self._state = self._outside
        self._talks = True
        return Said(self._lead)

    def _known(self, name: str) -> bool:
        return name in self._names if not self._convention.begin else bool(name)

    def _begin(self, name: str) -> Begun:
        self.calls += 1
        self._talks = False
        return Begun(self.calls - 1, f"call_{secrets.token_hex(12)}", name)

    def _arguments(self) -> Iterator[Piece]:
        """The arguments, up to the end of their object."""
        end = self._depth.end(self._text, 1, self._stop)
        taken = self._text[:end]
        self._text = self._text[len(taken) :]
        if end is not None:
            self._state = self._rest
        if taken:
            yield Argued(self.calls - 1, taken)

    def _rest(self) -> Iterator[Piece]:
        """What stands behind the arguments in the call's object, which says nothing."""
        end = self._depth.end(self._text, 0, self._stop)
        self._text = "" if end is None else self._text[end:]
        if end is not None:
            self._state = self._behind
        yield from ()

    def _behind(self) -> Iterator[Piece]:
        """The mark that ends a call; where the model forgot it, something else."""
        text, end = self._text.lstrip(), self._convention.end
        if text.startswith(end):
            self._text = text[len(end) :]
            self._state = self._outside
        elif not end.startswith(text):
            self._state = self._outside
        yield from ()


def calls_in(text: str, convention: Convention, names: Collection[str]) -> list[tuple[str, str]]:
    """Name and arguments, as the model wrote them, of each call in a whole answer."""
    parser = CallParser(convention, names)
    calls: list[tuple[str, str]] = []
    for piece in [*parser.feed(text), *parser.finish()]:
        if isinstance(piece, Begun):
            calls.append((piece.name, ""))
        elif isinstance(piece, Argued):
            calls[piece.index] = (calls[piece.index][0], calls[piece.index][1] + piece.text)
    return calls


def _string(quoted: str) -> str:
    """The text of a JSON string; empty where it is none."""
    try:
        return str(json.loads(quoted))
    except ValueError:
        return ""


def _call(text: str) -> tuple[str, str] | None:
    """Name and arguments of a call whose keys stand in any order; None where it is none."""
    try:
        read: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(read, dict) or not isinstance(read.get("name"), str):
        return None
    arguments: Any = next((read[key] for key in ARGUMENTS if read.get(key) is not None), {})
    return read["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
