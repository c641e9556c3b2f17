"""What a source gives: documents, one at a time, and a fingerprint of everything that they are made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import xxhash


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
    """Counts of what was not taken, by reason, and lines that the user should see."""

    dropped: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


class Source(Protocol):
    """One argument of `collect`."""

    @property
    def name(self) -> str:
        """What its documents carry as `source`."""
        ...

    def fingerprint(self) -> str:
        """`sha256:…` of what will be read. Raises `InputError` where that is missing or unreadable."""
        ...

    def documents(self, tally: Tally) -> Iterator[Document]:
        """The documents in a fixed order; what is left out is counted in `tally`."""
        ...


class UniqueIds:
    """Gives the second and later owner of an id a suffix: `a`, `a~2`, `a~3`."""

    def __init__(self) -> None:
        self.renamed = 0
        self._seen: set[int] = set()  # 128-bit hashes: a fixed 60 bytes for each id

    def __call__(self, wanted: str) -> str:
        """`wanted`, or the first free `wanted~N`."""
        given, number = wanted, 1
        while (key := xxhash.xxh3_128_intdigest(given.encode())) in self._seen:
            number += 1
            given = f"{wanted}~{number}"
        self._seen.add(key)
        self.renamed += given != wanted
        return given
