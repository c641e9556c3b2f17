"""What a source gives: documents, one at a time, and the counts of what it does not give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

EXAMPLES = 3  # places that are remembered for each reason
ERRORS = {"damaged", "encoding"}  # reasons that are an error where the user named the very file


@dataclass(frozen=True, slots=True)
class Document:
    """One row of a documents table, before its id is made unique."""

    id: str
    text: str
    source: str
    url: str = ""
    license: str = ""
    lang: str = ""
    time: str = ""


@dataclass
class Tally:
    """Counts of what was not taken, by reason, and lines that the user should see.

    Attributes:
        dropped: records that are no document of the result; each was read, or begun.
        skipped: files and folders that were never looked into.
        examples: by reason of `dropped`, the first places where it was met, with what was found there.
        notes: lines for the user.
        position: bytes read so far of the file at hand.
    """

    dropped: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    position: Callable[[], int] = int

    def drop(self, reason: str, where: str = "") -> None:
        """Count one record, and remember where it was."""
        self.dropped[reason] += 1
        places = self.examples.setdefault(reason, [])
        if where and len(places) < EXAMPLES:
            places.append(where)


class UnreadableError(Exception):
    """What is at hand (a file, a member, a record) gives no document, or no more of them; the rest can go on.

    Args:
        reason: what it is counted as: `damaged`, `too_large`, `decompression_bomb` …
        what: one line: where, and what is wrong with it.
        hint: how to mend it.
    """

    def __init__(self, reason: str, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.reason = reason
        self.what = what
        self.hint = hint
