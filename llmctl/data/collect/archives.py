"""Archives as folders: members one after the other, never written to disk.

A member's name only ever becomes part of an id, so `../`, absolute paths, names that differ in case alone and
names of 255 bytes are harmless; links and devices are not followed but counted.
"""

from __future__ import annotations

import contextlib
import re
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

from llmctl.data.collect.document import UnreadableError
from llmctl.data.collect.entry import Entry
from llmctl.data.collect.streams import charged, damage

LONGEST_HEADER_BYTES = 1 << 20  # a pax header or a long name; the format allows 8 GiB
DIRECTORY_BYTES = 32 << 20  # a zip's table of contents: about 400,000 members, and as many Python objects
ZIP_IN_MEMORY_BYTES = 64 << 20  # a zip within an archive
END_BYTES = 22 + 65535  # a zip's last record with the longest comment
ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2}
ENCRYPTED = 1
DRIVE = re.compile(r"^[A-Za-z]:")


def inner_name(name: str) -> str:
    """A member's name as a relative path: no drive, no leading slash, no `.` or `..`; valid UTF-8."""
    parts = DRIVE.sub("", name.replace("\\", "/")).split("/")
    kept = "/".join(part for part in parts if part not in {"", ".", ".."})
    return kept.encode("utf-8", "replace").decode() or "unnamed"


def is_hidden(name: str) -> bool:
    """Whether a part of the path starts with a dot, or is a folder that macOS adds."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _member(archive: Entry, name: str, handle: BinaryIO) -> Entry | None:
    """The member as an entry; None, counted, where it is hidden."""
    inner = inner_name(name)
    if is_hidden(inner):
        archive.reading.tally.skipped["hidden"] += 1
        return None
    return Entry(
        name=f"{archive.name}/{inner}",
        handle=handle,
        where=f"{archive.where}/{inner}",
        reading=archive.reading,
        depth=archive.depth + 1,
    )


class _BoundedHeaders(tarfile.TarInfo):
    """Members whose headers are short; Python's own reader takes one of any length into memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        extended = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.SOLARIS_XHDTYPE)
        if self.type in (*extended, tarfile.XHDTYPE, tarfile.XGLTYPE) and self.size > LONGEST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        member: tarfile.TarInfo | None = super()._proc_member(tar)  # type: ignore[misc]
        return member


def tar_members(archive: Entry) -> Iterator[Entry]:
    """The regular files of a tar archive, in its order; each is read before the next is asked for."""
    skipped = archive.reading.tally.skipped
    with _tar_damage(archive):
        tar = tarfile.open(  # noqa: SIM115 - closed below
            fileobj=archive.open(), mode="r|", bufsize=1 << 17, tarinfo=_BoundedHeaders, errors="replace"
        )
    with tar:
        while True:
            with _tar_damage(archive):
                info = tar.next()
            if info is None:
                return
            tar.members = []  # type: ignore[attr-defined]  # what was read needs no more memory
            if info.isdir():
                continue
            if info.issym() or info.islnk():
                skipped["link"] += 1
            elif not info.isreg() or info.issparse():
                skipped["special"] += 1
            else:
                handle = tar.extractfile(info)
                if handle is not None and (entry := _member(archive, info.name, handle)):  # type: ignore[arg-type]
                    yield entry


@contextlib.contextmanager
def _tar_damage(archive: Entry) -> Iterator[None]:
    """`damage` for what tarfile raises: its own errors, and others where a header makes no sense."""
    try:
        with damage(archive.where):
            yield
    except (ValueError, OverflowError, struct.error) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        what = f"{archive.where} is truncated or damaged: {reason}"
        raise UnreadableError("damaged", what, "copy or download it again") from error


def zip_members(archive: Entry) -> Iterator[Entry]:
    """The regular files of a zip archive, in the order of its table of contents."""
    tally, where = archive.reading.tally, archive.where
    source = archive.seekable(ZIP_IN_MEMORY_BYTES)
    _check_directory(source, where)
    try:
        table = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, UnicodeError) as error:
        raise UnreadableError(
            "damaged", f"{where} is truncated or damaged: {error}", "copy or download it again"
        ) from error
    with table:
        for info in table.infolist():
            kind = (info.external_attr >> 16) & 0o170000  # the Unix mode, where there is one
            if info.filename.endswith("/") or kind == 0o040000:
                continue
            if kind not in (0, 0o100000):
                tally.skipped["link" if kind == 0o120000 else "special"] += 1
            elif info.flag_bits & ENCRYPTED:
                tally.drop("encrypted", f"{where}/{inner_name(info.filename)}")
            elif info.compress_type not in ZIP_METHODS:
                tally.drop("unknown_compression", f"{where}/{inner_name(info.filename)}")
            else:
                yield from _open_zip_member(archive, table, info)


def _open_zip_member(archive: Entry, table: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[Entry]:
    where = f"{archive.where}/{inner_name(info.filename)}"
    try:
        with damage(where), table.open(info) as member:
            handle = charged(member, archive.reading.budget, where)
            if (entry := _member(archive, info.filename, handle)) is not None:
                yield entry
    except UnreadableError as fault:
        archive.reading.tally.drop(fault.reason, fault.what)
    except (ValueError, NotImplementedError, struct.error) as error:
        archive.reading.tally.drop("damaged", f"{where} is damaged: {error}")


def _check_directory(source: BinaryIO, where: str) -> None:
    """Refuse a table of contents that would not fit into memory."""
    with damage(where):
        end = source.seek(0, 2)
        source.seek(max(0, end - END_BYTES))
        tail = source.read(END_BYTES)
        source.seek(0)
    found = tail.rfind(b"PK\x05\x06")
    if found < 0 or len(tail) < found + 16:
        raise UnreadableError("damaged", f"{where} is truncated or damaged: no table of contents", "copy it again")
    size = int.from_bytes(tail[found + 12 : found + 16], "little")
    if size == 0xFFFFFFFF:  # zip64: the size stands in a record of its own
        large = tail.rfind(b"PK\x06\x06")
        size = int.from_bytes(tail[large + 40 : large + 48], "little") if large >= 0 else size
    if size > DIRECTORY_BYTES:
        raise UnreadableError("too_large", f"{where} has a table of contents of {size} bytes", "split the archive")
