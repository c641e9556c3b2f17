"""Cuts WARC and ARC files into records, and goes on behind the ones that are broken.

fastwarc parses what a record holds, but ends a file at its first wrong length or damaged gzip member, so the
cutting is done here: a record is what its header says, if another header or the end follows; if not, the record
is given up and the next header is looked for. A damaged gzip member costs that member.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from llmctl.data.collect.document import UnreadableError
from llmctl.data.collect.entry import Entry
from llmctl.data.collect.formats import compression
from llmctl.data.collect.streams import damage

BLOCK_BYTES = 1 << 17
GZIP_MAGIC = b"\x1f\x8b\x08"
LONGEST_HEADER_BYTES = 64 << 10
HELD_BYTES = 1 << 20  # of a member, in which the next one is looked for where it proves damaged
BLANK = b"\r\n"
LONGEST_RESYNC_BYTES = 6000  # more than any match of `Grammar.resync`
WARC_BEGINS = b"WARC/"


@dataclass(frozen=True)
class Grammar:
    """What a record's header looks like.

    Attributes:
        starts: what every header begins with, as a pattern.
        header: the whole header; its group 1 is the length of what follows.
        resync: where another record may start, behind a broken one.
    """

    starts: re.Pattern[bytes]
    header: re.Pattern[bytes]
    resync: re.Pattern[bytes]


WARC = Grammar(
    starts=re.compile(rb"WARC/[01]\."),
    header=re.compile(
        rb"WARC/[01]\.\d{1,3}[ \t]*\r?\n(?:(?!content-length:|WARC/)[^\r\n][^\n]*\n)*?"
        rb"content-length:[ \t]*(\d{1,15})[ \t]*\r?\n"
        rb"(?:[^\r\n][^\n]*\n)*\r?\n",
        re.IGNORECASE,
    ),
    resync=re.compile(rb"(?<=\n)WARC/[01]\.\d"),
)
ARC = Grammar(
    starts=re.compile(rb"[A-Za-z][A-Za-z0-9+.-]{1,20}:"),
    header=re.compile(rb"[A-Za-z][A-Za-z0-9+.-]{1,20}:\S* [0-9A-Fa-f.:]+ \d{8,14} [^\n]*?(\d{1,15})\r?\n"),
    resync=re.compile(rb"(?<=\n)[A-Za-z][A-Za-z0-9+.-]{1,20}:\S{1,5000} [0-9A-Fa-f.:]+ \d{14} "),
)


@dataclass(frozen=True)
class Block:
    """Bytes of the file, decompressed.

    Attributes:
        data: the bytes.
        starts: whether a gzip member starts with them.
        broken: whether bytes were lost before them.
    """

    data: bytes
    starts: bool = False
    broken: bool = False


@dataclass(frozen=True)
class Frame:
    """One record as it is written, or (`raw` None) why there is none.

    Attributes:
        raw: header and body.
        head: how long the header is.
        reason: `damaged` or `too_large`.
    """

    raw: bytes | None
    head: int = 0
    reason: str = ""


def blocks(entry: Entry) -> Iterator[Block]:
    """The decompressed bytes of an entry, in pieces."""
    if compression(entry.name) == ".gz":
        yield from _gzip_blocks(entry)
        return
    handle = entry.open()
    while True:
        try:
            with damage(entry.where):
                data = handle.read(BLOCK_BYTES)
        except UnreadableError as fault:
            if fault.reason != "damaged":
                raise
            yield Block(b"", broken=True)
            return
        if not data:
            return
        yield Block(data)


def _gzip_blocks(entry: Entry) -> Iterator[Block]:
    """Member by member; behind a damaged one, the next magic number is looked for."""
    waiting, lost = b"", False
    while True:
        place = waiting.find(GZIP_MAGIC)
        if place < 0:
            lost = lost or bool(waiting[:-2].strip(b"\0"))
            fresh = _raw(entry)
            if not fresh:
                if lost or waiting.strip(b"\0"):
                    yield Block(b"", broken=True)
                return
            waiting = waiting[-2:] + fresh
            continue
        lost = lost or bool(waiting[:place].strip(b"\0"))
        member = _Member(entry, waiting[place:])
        for data in member.inflate():
            yield Block(data, starts=member.first, broken=lost)
            member.first = lost = False
        lost = lost or member.damaged
        waiting = member.rest


class _Member:
    """One gzip member.

    Attributes:
        first: whether no block of it has been given yet.
        damaged: known at the end.
        rest: raw bytes behind it; behind its magic number where it is damaged.
    """

    def __init__(self, entry: Entry, raw: bytes) -> None:
        self.first, self.damaged, self.rest = True, False, b""
        self._entry = entry
        self._raw = raw

    def inflate(self) -> Iterator[bytes]:
        """Its bytes, in blocks."""
        inflater = zlib.decompressobj(31)
        held, waiting = self._raw, self._raw
        while not inflater.eof:
            try:
                data = inflater.decompress(waiting, BLOCK_BYTES)
            except zlib.error:
                self.damaged, self.rest = True, held[1:]
                return
            if data:
                self._entry.reading.budget.spend(len(data), self._entry.where)
                yield data
            waiting = inflater.unconsumed_tail
            if not waiting and not inflater.eof:
                waiting = _raw(self._entry)
                held = held + waiting if len(held) < HELD_BYTES else waiting
                if not waiting:
                    self.damaged, self.rest = True, held[1:]
                    return
        self.rest = inflater.unused_data


def _raw(entry: Entry) -> bytes:
    with damage(entry.where):
        return entry.handle.read(BLOCK_BYTES)


class Framer:
    """Reads records off blocks.

    Args:
        grammar: of the headers.
        source: the file's blocks.
        longest: bodies longer than this are passed over.
    """

    def __init__(self, grammar: Grammar, source: Iterator[Block], longest: int) -> None:
        self._grammar = grammar
        self._source = source
        self._longest = longest
        self._buffer = bytearray()
        self._next = next(source, None)
        self._told = False  # whether a record that the wall ahead cut off has been counted

    def frames(self) -> Iterator[Frame]:
        """Every record in order; a run of bytes that is none counts once."""
        garbage = False
        while True:
            self._skip_blank()
            if self._buffer:
                header = self._header()
                if header is not None:
                    yield self._record(*header)
                elif not garbage:
                    yield self._broken(1)
                else:
                    self._resync(1)
                garbage = header is None
                continue
            block = self._next  # at a wall: begin afresh behind it
            if block is None:
                return
            self._buffer += block.data
            self._next = next(self._source, None)
            if block.broken and not self._told:
                yield Frame(None, reason="damaged")
            self._told = False

    def _fill(self) -> bool:
        """One block more; False at a wall: the end, lost bytes, or a member that starts with a header."""
        block = self._next
        if block is None or block.broken or (block.starts and self._grammar.starts.match(block.data)):
            return False
        self._buffer += block.data
        self._next = next(self._source, None)
        return True

    def _skip_blank(self) -> None:
        while True:
            blank = len(self._buffer) - len(self._buffer.lstrip(BLANK))
            del self._buffer[:blank]
            if self._buffer or not self._fill():
                return

    def _header(self) -> tuple[int, int] | None:
        """Length of the header that the buffer starts with, and of its body; None where there is none."""
        while True:
            found = self._grammar.header.match(self._buffer, 0, LONGEST_HEADER_BYTES)
            if found:
                return found.end(), int(found[1])
            if len(self._buffer) >= LONGEST_HEADER_BYTES or not self._fill():
                return None

    def _record(self, head: int, length: int) -> Frame:
        end = head + length
        if length > self._longest:
            dropped = self._resync(head)
            return Frame(None, reason="too_large" if dropped >= end else "damaged")
        while len(self._buffer) < end and self._fill():
            pass
        while len(self._buffer) < end + 8 and not (self._next and self._next.starts) and self._fill():
            pass
        if len(self._buffer) < end or not self._another_at(end):
            return self._broken(head)
        raw = bytes(self._buffer[:end])
        del self._buffer[:end]
        return Frame(raw, head)

    def _another_at(self, end: int) -> bool:
        """Whether a header, or nothing, follows."""
        behind = bytes(self._buffer[end : end + 64]).lstrip(BLANK)
        return not behind or bool(self._grammar.starts.match(behind)) or WARC_BEGINS.startswith(behind)

    def _broken(self, start: int) -> Frame:
        self._resync(start)
        return Frame(None, reason="damaged")

    def _resync(self, start: int) -> int:
        """Drop bytes up to where another record may start, or to the wall; how many they were."""
        dropped = 0
        while True:
            place = self._another(start)
            if place is None:
                place = max(0, len(self._buffer) - LONGEST_RESYNC_BYTES)
                dropped += place
                del self._buffer[:place]
                start = 0  # what the buffer began with does not match again: no line ends before it
                if self._fill():
                    continue
                place = len(self._buffer)
                self._told = True
            del self._buffer[:place]
            return dropped + place

    def _another(self, start: int) -> int | None:
        found = self._grammar.resync.search(self._buffer, start)  # while it lives, the buffer cannot shrink
        return found.start() if found else None
