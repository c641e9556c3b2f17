"""Text and JSON Lines from plain, gzip or Zstandard files, with errors that name the file and the line."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from llmctl.config.errors import InputError
from llmctl.store.files import explained

LONGEST_LINE_BYTES = 256 << 20  # a decompression bomb is one long line
COMPRESSED = (".gz", ".zst")


def plain_suffix(path: Path) -> str:
    """The lower-case ending that tells the format, below `.gz` or `.zst` (`a.jsonl.gz` gives `.jsonl`)."""
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading its decompressed bytes."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast("BinaryIO", gzip.open(path, "rb"))
    if suffix == ".zst":
        return cast("BinaryIO", io.BufferedReader(_ZstandardFrames(path)))
    return open(path, "rb")


class _ZstandardFrames(io.RawIOBase):
    """Decompressed bytes of a .zst file; the end of the file inside a frame is an `EOFError`.

    zstandard's own reader returns the bytes it has at a truncation and says nothing.
    """

    BLOCK_BYTES = 1 << 17

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame = self._decompressor.decompressobj()
        self._inside = True  # an empty file is not a frame either
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with the next decompressed bytes; 0 at the end of the last frame."""
        while not self._pending:
            block = self._frame.unused_data or self._file.read(self.BLOCK_BYTES)
            if not block:
                if self._inside:
                    raise EOFError("compressed file ended before the end of a frame")
                return 0
            if not self._inside:
                self._frame = self._decompressor.decompressobj()
            self._pending = memoryview(self._frame.decompress(block))
            self._inside = not self._frame.eof
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn damage found while reading `path` into an `InputError` that names it."""
    try:
        with explained(str(path)):
            yield
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"{path} is truncated or damaged: {error}", hint="copy or download it again") from error
    except InputError as error:
        # gzip.BadGzipFile is an OSError, which `explained` has translated without saying "damaged".
        if isinstance(error.__cause__, gzip.BadGzipFile):
            raise InputError(
                f"{path} is truncated or damaged: {error.__cause__}", hint="copy or download it again"
            ) from error
        raise


def decode(content: bytes, path: Path, offset: int = 0) -> str:
    """UTF-8 text of `content`, which starts `offset` bytes into the (decompressed) file."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: invalid UTF-8 at byte {offset + error.start}",
            hint="convert it, for instance: iconv -f latin1 -t utf-8",
        ) from error


def read_text(path: Path, most_bytes: int) -> str | None:
    """A whole file as text, without a byte-order mark; None where it is longer than `most_bytes` decompressed."""
    with readable(path), open_bytes(path) as handle:
        content = handle.read(most_bytes + 1)
    return None if len(content) > most_bytes else decode(content, path).removeprefix("\ufeff")


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each non-blank line of a JSON Lines file."""
    offset = 0
    with readable(path), open_bytes(path) as handle:
        for number, line in enumerate(iter(lambda: handle.readline(LONGEST_LINE_BYTES + 1), b""), start=1):
            if len(line) > LONGEST_LINE_BYTES:
                raise InputError(
                    f"{path} line {number} is over {LONGEST_LINE_BYTES >> 20} MiB", hint="split the document"
                )
            text = decode(line, path, offset).removeprefix("\ufeff" if offset == 0 else "").strip()
            offset += len(line)
            if text:
                yield number, _parse(text, path, number)


def _parse(text: str, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = (
            f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        )
        raise InputError(
            f"{path} line {number}: invalid JSON: {reason}", hint="each line must be one JSON object"
        ) from error
    if not isinstance(value, dict):
        raise InputError(
            f"{path} line {number}: a {type(value).__name__}, not an object", hint="each line must be one JSON object"
        )
    return value
