"""Bytes on their way from a file to a reader: hashed as they are read, and measured as they unfold."""

from __future__ import annotations

import contextlib
import hashlib
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import pyarrow as pa

from llmctl.data.collect.document import UnreadableError
from llmctl.data.lines import COMPRESSED, Decompressed

BLOCK_BYTES = 1 << 17
FREE_BYTES = 4 << 20  # no bomb yet, whatever the ratio: blank pages and padded archives are small

DAMAGE = (EOFError, lzma.LZMAError, zlib.error, pa.ArrowException, tarfile.TarError, zipfile.BadZipFile)


class HashedFile(io.RawIOBase):
    """A file of which every byte is hashed on its first way past; seeking readers leave the rest to `digest`.

    Readers close what they were given; the file itself is closed at the end of the `with` block.

    Attributes:
        consumed: bytes that were read, those read again included.
    """

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by __exit__
        self._hash = hashlib.sha256()
        self._hashed = self._position = self.consumed = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always: sources are regular files."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """As any file's."""
        self._position = self._file.seek(offset, whence)
        return self._position

    def tell(self) -> int:
        """As any file's."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read, count and hash."""
        count = self._file.readinto(buffer) or 0
        if self._position <= self._hashed < self._position + count:
            self._hash.update(memoryview(buffer)[self._hashed - self._position : count])
            self._hashed = self._position + count
        self._position += count
        self.consumed += count
        return count

    def distinct(self) -> int:
        """Bytes that were read, at most those of the file."""
        return min(self.consumed, os.fstat(self._file.fileno()).st_size)

    def digest(self) -> str:
        """Hex SHA-256 of the whole file; what no reader wanted is read now."""
        self._file.seek(self._hashed)
        while block := self._file.read(1 << 20):
            self._hash.update(block)
        return self._hash.hexdigest()

    def __exit__(self, *_: object) -> None:
        self.close()
        self._file.close()


@dataclass
class Budget:
    """How far one file may unfold, over all layers of compression and all members together.

    Attributes:
        consumed: how many of its own bytes have been read; those that overlapping members share count once.
        ratio: bytes out for each byte in.
    """

    consumed: Callable[[], int]
    ratio: int
    spent: int = field(default=0, init=False)

    def spend(self, count: int, where: str) -> None:
        """Note that `count` bytes came out somewhere.

        Raises:
            UnreadableError: it is too much for what went in.
        """
        self.spent += count
        if self.spent > FREE_BYTES and self.spent > self.ratio * self.consumed():
            raise UnreadableError("decompression_bomb", f"{where} unfolds to more than {self.ratio} times its size")


class Metered(io.RawIOBase):
    """A stream whose bytes are charged to a budget."""

    def __init__(self, source: Any, budget: Budget, where: str) -> None:
        self._source = source
        self._budget = budget
        self._where = where

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read and charge."""
        data = self._source.read(len(buffer))
        self._budget.spend(len(data), self._where)
        buffer[: len(data)] = data
        return len(data)


def unfolded(source: BinaryIO, ending: str, budget: Budget, where: str) -> BinaryIO:
    """`source` decompressed where its ending asks for it, and charged to `budget`."""
    if ending not in COMPRESSED:
        return source
    return cast("BinaryIO", io.BufferedReader(Metered(Decompressed(source, ending), budget, where), BLOCK_BYTES))


def charged(source: Any, budget: Budget, where: str) -> BinaryIO:
    """A member of an archive, which its archive has decompressed, charged to `budget`."""
    return cast("BinaryIO", io.BufferedReader(Metered(source, budget, where), BLOCK_BYTES))


@contextlib.contextmanager
def damage(where: str, what: str = "truncated or damaged") -> Iterator[None]:
    """Turn what decompressors and Arrow raise at damage into `UnreadableError`; the system's own errors pass."""
    try:
        yield
    except DAMAGE as error:
        fault: BaseException = error
    except OSError as error:
        if error.errno is not None:
            raise
        fault = error
    else:
        return
    first = (str(fault).splitlines() or ["unreadable"])[0]
    raise UnreadableError("damaged", f"{where} is {what}: {first}", "copy or download it again") from fault
