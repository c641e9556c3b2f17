"""Files that are one document each: prose, HTML and source code."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llmctl.data.collect.document import Document, UnreadableError
from llmctl.data.collect.entry import Entry
from llmctl.data.collect.formats import format_of, language_of, language_of_script
from llmctl.data.collect.streams import damage

SPDX_LINE = re.compile(r"SPDX-License-Identifier:\s*\(?([A-Za-z0-9.+-]+(?:\s+(?:OR|AND|WITH)\s+[A-Za-z0-9.+-]+)*)")
HEAD_CHARACTERS = 2000  # where a file's own licence line stands
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def read_text(entry: Entry) -> Iterator[Document]:
    """The file as one document; a script without an ending needs a `#!` line that is known."""
    reading = entry.reading
    language = language_of(entry.name)
    if format_of(entry.name) == "script":
        with damage(entry.where):
            language = language_of_script(entry.open().peek(256)[:256])  # type: ignore[attr-defined]
        if not language:
            reading.tally.skipped["unknown_format"] += 1
            return
    content = entry.whole(reading.config.max_document_bytes)
    if content.startswith(LFS_POINTER):
        raise UnreadableError("lfs_pointer", f"{entry.where} only points to a file that git-lfs keeps elsewhere")
    text = decode(content, entry.where, detect=reading.config.encoding == "detect")
    own = SPDX_LINE.search(text, 0, HEAD_CHARACTERS) if language else None
    yield Document(
        id=entry.name,
        text=text,
        source=reading.source,
        url=reading.url,
        license=own[1] if own else reading.license,
        lang=language,
        time=reading.time,
    )


def decode(content: bytes, where: str, offset: int = 0, *, detect: bool = False) -> str:
    """Text of UTF-8 bytes, without a byte-order mark; or of bytes in an encoding that is guessed from them.

    Raises:
        UnreadableError: they are not UTF-8, and nothing is to be guessed.
    """
    try:
        return content.decode("utf-8").removeprefix("\ufeff" if not offset else "")
    except UnicodeDecodeError as error:
        if detect:
            return guess(content)
        raise UnreadableError(
            "encoding",
            f"{where}: invalid UTF-8 at byte {offset + error.start}",
            "convert it, for instance: iconv -f latin1 -t utf-8, or set encoding=detect",
        ) from error


def guess(content: bytes, declared: str = "", *, html: bool = False) -> str:
    """Text in the declared encoding, or in the one that HTML's meta tag, UTF-8 or uchardet (resiliparse) tells.

    What does not fit is tried as UTF-8, then as Windows-1252; what still does not fit is replaced by U+FFFD.
    """
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

    encoding = map_encoding_to_html5(declared, fallback_utf8=False) if declared else None
    if encoding is None:
        encoding = detect_encoding(content, from_html_meta=html)
    try:
        text: str = bytes_to_str(content, encoding or "utf-8", errors="replace")
    except (LookupError, UnicodeError):  # a codec that Python lacks, or one that is no text encoding
        text = content.decode("utf-8", errors="replace")
    return text.removeprefix("\ufeff")
