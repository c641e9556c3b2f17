"""One file on its way to a reader: of the disk, a member of an archive, or an object of a git repository."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from llmctl.config.collect import CollectConfig
from llmctl.data.collect.document import Tally, UnreadableError
from llmctl.data.collect.formats import compression
from llmctl.data.collect.streams import Budget, damage, unfolded


@dataclass(frozen=True)
class Reading:
    """What the readers of one file of the disk share.

    Attributes:
        source: what documents without a source of their own carry.
        config: bounds and choices.
        tally: where what is left out is counted.
        budget: how far the file may unfold.
        license, url, time: for documents that name none.
    """

    source: str
    config: CollectConfig
    tally: Tally
    budget: Budget
    license: str = ""
    url: str = ""
    time: str = ""


@dataclass(frozen=True)
class Entry:
    """Bytes with a name.

    Attributes:
        name: path within the source; members of an archive lie below the archive's own name.
        handle: the bytes as they are stored.
        where: what messages call it.
        reading: what it shares with its neighbours.
        depth: how many archives are around it.
        strict: whether damage is an error: it is where the user named this very file.
    """

    name: str
    handle: BinaryIO
    where: str
    reading: Reading
    depth: int = 0
    strict: bool = False
    _opened: list[BinaryIO] = field(default_factory=list, repr=False)

    def open(self) -> BinaryIO:
        """The decompressed bytes; the same stream at each call."""
        if not self._opened:
            self._opened.append(unfolded(self.handle, compression(self.name), self.reading.budget, self.where))
        return self._opened[0]

    def whole(self, most: int) -> bytes:
        """All decompressed bytes.

        Raises:
            UnreadableError: they are damaged, or more than `most`.
        """
        with damage(self.where):
            content = self.open().read(most + 1)
        if len(content) > most:
            raise UnreadableError("too_large", f"{self.where} is longer than {most} bytes")
        return content

    def seekable(self, most: int) -> BinaryIO:
        """The bytes as a stream that can go back: in memory where the entry is not a file of the disk."""
        return cast("BinaryIO", io.BytesIO(self.whole(most))) if self.depth else self.handle

    def lines(self, longest: int) -> Iterator[tuple[int, int, bytes | None]]:
        """(number from 1, offset, bytes) of each line with anything in it; None for one over `longest` bytes."""
        number = end = 0
        handle = self.open()
        with damage(self.where):
            while line := handle.readline(longest + 1):
                number += 1
                start, end = end, end + len(line)
                if len(line) <= longest:
                    if line != b"\n":
                        yield number, start, line
                    continue
                while line and not line.endswith(b"\n"):
                    line = handle.readline(1 << 20)
                    end += len(line)
                yield number, start, None
