"""Text and JSON Lines from plain or compressed files, with errors that name the file and the line."""

from __future__ import annotations

import contextlib
import io
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import pyarrow as pa

from llmctl.config.errors import InputError
from llmctl.store.files import explained

LONGEST_LINE_BYTES = 256 << 20  # a decompression bomb is one long line
ARROW_CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
COMPRESSED = (*ARROW_CODECS, ".xz")
XZ_MEMORY_BYTES = 128 << 20  # `xz -9` needs 65 MiB; a header can ask for 4 GiB
BLOCK_BYTES = 1 << 17


def plain_suffix(path: Path) -> str:
    """The lower-case ending that tells the format, below a compression's (`a.jsonl.gz` gives `.jsonl`)."""
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix


class _Reads(Protocol):
    def read(self, count: int, /) -> bytes: ...


class _Xz:
    """Decompressed bytes of an .xz stream, at most `count` at a time; zero bytes between streams are padding."""

    def __init__(self, source: _Reads) -> None:
        self._source = source
        self._waiting = b""
        self._stream: lzma.LZMADecompressor | None = None

    def read(self, count: int) -> bytes:
        """Up to `count` bytes; none at the end."""
        while True:
            stream = self._stream
            if not self._waiting and (stream is None or stream.needs_input):
                self._waiting = self._source.read(BLOCK_BYTES)
                if not self._waiting:
                    if stream is not None:
                        raise EOFError("compressed file ended before the end of a stream")
                    return b""
            if stream is None:
                self._waiting = self._waiting.lstrip(b"\0")
                if not self._waiting:
                    continue
                stream = self._stream = lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=XZ_MEMORY_BYTES)
            found = stream.decompress(self._waiting, count)
            self._waiting = b""
            if stream.eof:
                self._waiting, self._stream = stream.unused_data, None
            if found:
                return found


class Decompressed(io.RawIOBase):
    """The decompressed bytes of a stream of one or more frames; what it holds is bounded by a block.

    A stream that ends within a frame is an error at its end, as is one without any byte: Arrow's readers and
    `lzma` tell the end of a frame from the end of the file, which zstandard's reader does not.

    Args:
        source: compressed bytes.
        ending: `.gz`, `.zst`, `.bz2` or `.xz`.
    """

    def __init__(self, source: BinaryIO, ending: str) -> None:
        self._source = source
        self._inner: _Reads
        if ending == ".xz":
            self._inner = _Xz(source)
        else:
            self._inner = pa.CompressedInputStream(pa.PythonFile(source, "r"), ARROW_CODECS[ending])
        self._empty = True

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with the next bytes; 0 at the end of the last frame."""
        found = self._inner.read(min(len(buffer), 8 * BLOCK_BYTES))
        if not found and self._empty and self._source.seekable() and not self._source.tell():
            raise EOFError("the compressed file is empty")
        self._empty = False
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        """Close the source too."""
        self._source.close()
        super().close()


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading its decompressed bytes."""
    source = open(path, "rb")  # noqa: SIM115 - the caller closes it
    ending = path.suffix.lower()
    if ending not in COMPRESSED:
        return source
    return cast("BinaryIO", io.BufferedReader(Decompressed(source, ending), BLOCK_BYTES))


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn damage found while reading `path` into an `InputError` that names it."""
    try:
        with explained(str(path)):
            yield
    except (EOFError, lzma.LZMAError) as error:
        raise _damaged(path, error) from error
    except InputError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno is None:  # Arrow's, which `explained` cannot tell from others
            raise _damaged(path, cause) from error
        raise


def _damaged(path: Path, error: BaseException) -> InputError:
    return InputError(f"{path} is truncated or damaged: {error}", hint="copy or download it again")


def decode(content: bytes, path: Path, offset: int = 0) -> str:
    """UTF-8 text of `content`, which starts `offset` bytes into the (decompressed) file."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: invalid UTF-8 at byte {offset + error.start}",
            hint="convert it, for instance: iconv -f latin1 -t utf-8",
        ) from error


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
                yield number, parse_object(text, f"{path} line {number}")


def parse_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object that `text` is.

    Raises:
        InputError: it is none; the message starts with `where`.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = "each line must be one JSON object"
        raise InputError(f"{where}: invalid JSON: {_json_fault(error)}", hint=hint) from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: a {type(value).__name__}, not an object", hint="each line must be one JSON object")
    return value


def _json_fault(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]
